"""Encoders' Triton launches make the bits of the definitions in float64."""

from __future__ import annotations

import pytest
import torch

import encoder_cases as cases
from hata_kernels.encoders import AsymmetricEncoder


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@cases.ALL
def test_triton_makes_the_same_codes(
    device, poison, dtype, method, kv_heads, group, dim, bits, options
) -> None:
    encoder = cases.make(method, kv_heads, group, dim, bits, **options)
    tokens = 70  # more than a block, and no multiple of one
    # Slices of a fused projection. Half precision is rounded before, so that both see the same.
    fused = torch.randn(tokens, (group + 1) * kv_heads * dim).to(dtype)
    q = fused[:, : group * kv_heads * dim].unflatten(1, (-1, dim))
    k = fused[:, group * kv_heads * dim :].unflatten(1, (-1, dim))
    k[3], q[3] = 0, 0
    there = encoder.to(device, dtype)
    rounded = there.to("cpu", torch.float32)
    codes, scales = cases.make_buffers(encoder, 100, poison, device)
    slots = torch.randperm(99)[:tokens] + 1
    there._launch_keys(k.to(device), codes, slots.to(device), scales)
    found = cases.unpack_bits(codes.cpu()[slots])
    q_codes, bias = there._launch_queries(q.to(device))
    q_found = cases.unpack_bits(q_codes.cpu()).unflatten(1, (kv_heads, -1))
    cases.assert_bias(None if bias is None else bias.cpu(), rounded, q)
    if method == "hashattention" and dtype == torch.float16 and options.get("hidden") != ():
        # Hidden layers are rounded to half precision: bits near the threshold change.
        assert (found != rounded.key_bits(k)).float().mean() < 0.01
        assert (q_found != rounded.query_bits_of(q)).float().mean() < 0.01
    else:
        cases.assert_key_bits(found, rounded, k)
        keep = (
            torch.arange(tokens) != 3
            if isinstance(encoder, cases.AsymmetricEncoder)
            else slice(None)
        )
        cases.assert_query_bits(q_found[keep], rounded, q[keep])
    untouched = torch.ones(100, dtype=torch.bool)
    untouched[slots] = False
    assert codes.cpu()[untouched].eq(-987654321).all()
    if scales is not None:
        cases.assert_scales(scales.cpu()[slots], rounded, k)
        assert scales.cpu()[untouched].eq(77).all()


def test_a_query_without_length_has_the_levels_around_zero(device) -> None:
    encoder = cases.make("asymmetric", 2, 3, 64, 96, query_bits=3)
    tensors = encoder.tensors()
    tensors["query_bias"] = torch.zeros(2, 96)
    shape = {"num_kv_heads": 2, "group": 3, "head_dim": 64}
    encoder = AsymmetricEncoder.from_tensors(tensors, query_bits=3, **shape)
    q = torch.zeros(4, 6, 64)
    assert encoder.query_levels(q).eq(0).all()
    found = encoder.to(device, q.dtype)._launch_queries(q.to(device)).codes
    assert torch.equal(found.cpu(), encoder.encode_queries(q).codes)


@pytest.mark.gpu
@cases.ALL
def test_triton_bfloat16(poison, method, kv_heads, group, dim, bits, options) -> None:
    # On the GPU only: Triton's interpreter has no bfloat16.
    encoder = cases.make(method, kv_heads, group, dim, bits, **options).to("cuda", torch.bfloat16)
    rounded = encoder.to("cpu", torch.float32)
    k = torch.randn(70, kv_heads, dim).bfloat16()
    q = torch.randn(70, kv_heads * group, dim).bfloat16()
    codes, scales = cases.make_buffers(encoder, 100, poison, "cuda")
    slots = torch.randperm(100)[:70]
    encoder.encode_keys(k.cuda(), codes=codes, slots=slots.cuda(), scales=scales)
    found = cases.unpack_bits(codes.cpu()[slots])
    q_codes, bias = encoder.encode_queries(q.cuda())
    q_found = cases.unpack_bits(q_codes.cpu()).unflatten(1, (kv_heads, -1))
    cases.assert_bias(None if bias is None else bias.cpu(), rounded, q)
    if method == "hashattention" and options.get("hidden") != ():
        assert (found != rounded.key_bits(k)).float().mean() < 0.03
        assert (q_found != rounded.query_bits_of(q)).float().mean() < 0.03
    else:
        cases.assert_key_bits(found, rounded, k)
        cases.assert_query_bits(q_found, rounded, q)
    if scales is not None:
        cases.assert_scales(scales.cpu()[slots], rounded, k)
