"""Encoders: bits against definitions in float64, packed codes, weights stored and made again."""

from __future__ import annotations

import pytest
import torch

import encoder_cases as cases
from hata_kernels.bits import pack_bits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@cases.ALL
def test_bits_are_those_of_the_definition(
    dtype, method, kv_heads, group, dim, bits, options
) -> None:
    encoder = cases.make(method, kv_heads, group, dim, bits, **options)
    assert encoder.bits == bits
    k, q = torch.randn(31, kv_heads, dim), torch.randn(13, kv_heads * group, dim)
    k *= 0.1 + torch.rand(31, kv_heads, 1)
    k, q = k.to(dtype), q.to(dtype)
    cases.assert_key_bits(encoder.key_bits(k), encoder, k)
    cases.assert_query_bits(encoder.query_bits_of(q), encoder, q)
    scales = encoder.key_scales(k)
    if encoder.scale_bits:
        assert scales.dtype == torch.int32
        assert 0 <= scales.min() <= scales.max() < 2**encoder.scale_bits
        assert len(scales.unique()) > 10
        cases.assert_scales(scales, encoder, k)
    else:
        assert scales is None


@cases.ALL
def test_codes_are_the_packed_bits(poison, method, kv_heads, group, dim, bits, options) -> None:
    encoder = cases.make(method, kv_heads, group, dim, bits, **options)
    k, q = torch.randn(9, kv_heads, dim), torch.randn(5, kv_heads * group, dim)
    codes, scales = cases.make_buffers(encoder, 20, poison)
    slots = torch.randperm(20)[:9].int()
    encoder.encode_keys(k, codes=codes, slots=slots, scales=scales)
    assert torch.equal(codes[slots.long()], pack_bits(encoder.key_bits(k)))
    rest = torch.ones(20, dtype=torch.bool)
    rest[slots.long()] = False
    assert codes[rest].eq(-987654321).all()
    if scales is not None:
        stored = scales[slots.long()].int() & (2**encoder.scale_bits - 1)
        assert torch.equal(stored, encoder.key_scales(k))
        assert scales[rest].eq(77).all()
    planes = len(encoder.plane_weights)
    q_codes, bias = encoder.encode_queries(q)
    cases.assert_bias(bias, encoder, q)
    assert q_codes.shape == (5, kv_heads * planes, encoder.words)
    assert q_codes.is_contiguous()
    packed = pack_bits(encoder.query_bits_of(q))
    for h in range(kv_heads):
        for p in range(planes):
            assert torch.equal(q_codes[:, h * planes + p], packed[:, h, p])


@cases.ALL
def test_stored_and_made_again(method, kv_heads, group, dim, bits, options) -> None:
    encoder = cases.make(method, kv_heads, group, dim, bits, **options)
    assert type(encoder) is cases.ENCODERS[method]
    shape = {"num_kv_heads": kv_heads, "group": group, "head_dim": dim}
    again = cases.ENCODERS[method].from_tensors(encoder.tensors(), **shape, **encoder.options())
    half = encoder.to("cpu", torch.bfloat16)
    k, q = torch.randn(6, kv_heads, dim), torch.randn(6, kv_heads * group, dim)
    assert torch.equal(again.key_bits(k), encoder.key_bits(k))
    assert torch.equal(again.query_bits_of(q), encoder.query_bits_of(q))
    assert again.code_bytes == bits // 8 + encoder.scale_bits // 8
    assert again.words == bits // 32
    assert set(options) - {"hidden", "biased"} <= set(encoder.options())
    assert again.options() == encoder.options() == half.options()
    for name, tensor in half.tensors().items():
        assert tensor.dtype == torch.float32
        stored = encoder.tensors()[name]
        kept = stored.bfloat16().float() if name.endswith("weight") else stored
        assert torch.equal(tensor, kept)


@pytest.mark.parametrize("method", cases.ENCODERS)
def test_no_tokens(method) -> None:
    encoder = cases.make(method, 2, 3, 64)
    codes = torch.full((5, 2, encoder.words), 3, dtype=torch.int32)
    encoder.encode_keys(torch.empty(0, 2, 64), codes=codes, slots=torch.empty(0, dtype=torch.int64))
    assert codes.eq(3).all()
    shape = (0, 2 * len(encoder.plane_weights), encoder.words)
    assert encoder.encode_queries(torch.empty(0, 6, 64)).codes.shape == shape
