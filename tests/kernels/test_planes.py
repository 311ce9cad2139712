"""Queries as bit-planes: the Triton launch against the encoder on a CPU."""

from __future__ import annotations

import pytest
import torch

import encoder_cases as cases
from encoder_cases import CLOSE, mostly, unpack_bits, whole
from hata_kernels.encoders import AsymmetricEncoder

# tokens, KV heads, group, head size, bits, planes
SHAPES = [
    pytest.param(1, 3, 3, 64, 128, 4, id="T1-G3of3-D64-r128-B4"),
    pytest.param(19, 1, 7, 80, 96, 1, id="T19-G7of1-D80-r96-B1"),
    pytest.param(33, 2, 1, 20, 32, 3, id="T33-G1of2-D20-r32-B3"),
    pytest.param(16, 2, 2, 33, 256, 8, id="T16-G2of2-D33-r256-B8"),
]
CLIP = 1.7


def make_inputs(make_numbers, tokens, kv_heads, group, dim, bits):
    """A slice of a fused projection, weights and biases; head 0 of query 1 projects to zeros."""
    heads = kv_heads * group
    fused = make_numbers(tokens, (heads + 2) * dim)
    q = fused[:, dim : (heads + 1) * dim].unflatten(1, (heads, dim))
    q[1:2] = 0
    size = (kv_heads, group * dim, bits)
    weight, bias = make_numbers(*size) * (torch.rand(size) < 0.2), make_numbers(kv_heads, bits)
    bias[0] = 0
    return q, weight, bias


def levels_of(codes: torch.Tensor, planes: int) -> torch.Tensor:
    """Levels ``[T, kv_heads, r]`` of packed planes."""
    bits = unpack_bits(codes.cpu()).unflatten(1, (-1, planes))
    return (bits * 2 ** torch.arange(planes).view(-1, 1)).sum(dim=2) - 2 ** (planes - 1)


def in_steps(q, weight, bias, planes) -> torch.Tensor:
    """What the levels are rounded from, in float64."""
    whole_q = q.double().reshape(len(q), *weight.shape[:2])
    u = torch.einsum("thn,hnr->thr", whole_q, weight.double()) + bias.double()
    rms = u.square().mean(dim=-1, keepdim=True).sqrt()
    return u / torch.where(rms == 0, 1.0, rms) / CLIP * 2 ** (planes - 1)


def check_against_the_reference(
    device, dtype, make_numbers, tokens, kv_heads, group, dim, bits, planes
) -> None:
    """Levels of the launch are those of the encoder on a CPU.

    But for those within rounding of the next, which may be the next.
    """
    q, weight, bias = make_inputs(make_numbers, tokens, kv_heads, group, dim, bits)
    q, weight = q.to(dtype), weight.to(dtype)
    tensors = {"query_weight": weight, "query_bias": bias}
    tensors |= {"key_weight": torch.zeros(kv_heads, dim, bits), "key_bias": bias}
    shape = {"num_kv_heads": kv_heads, "group": group, "head_dim": dim}
    encoder = AsymmetricEncoder(tensors, **shape, query_bits=planes, clip=CLIP)
    there = encoder.to(device, dtype)
    found = levels_of(there._launch_queries(q.to(device)).codes, planes)
    expected = encoder.query_levels(q)
    steps = in_steps(q, weight, bias, planes)
    clear = ((steps - steps.round()).abs() > CLOSE * 2**planes) | (steps == 0)
    assert mostly(clear, 0.9)
    assert torch.equal(found[clear], expected.long()[clear])
    assert (found - expected).abs().max() <= 1
    assert found[steps == 0].eq(0).all()


@pytest.mark.parametrize("make_numbers", [whole, torch.randn], ids=["whole", "real"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("tokens", "kv_heads", "group", "dim", "bits", "planes"), SHAPES)
def test_triton_is_the_reference(
    device, dtype, make_numbers, tokens, kv_heads, group, dim, bits, planes
) -> None:
    shape = (tokens, kv_heads, group, dim, bits, planes)
    check_against_the_reference(device, dtype, make_numbers, *shape)


@pytest.mark.gpu
@pytest.mark.parametrize("make_numbers", [whole, torch.randn], ids=["whole", "real"])
@pytest.mark.parametrize(("tokens", "kv_heads", "group", "dim", "bits", "planes"), SHAPES)
def test_triton_is_the_reference_in_bfloat16(
    make_numbers, tokens, kv_heads, group, dim, bits, planes
) -> None:
    # On the GPU only: Triton's interpreter has no bfloat16.
    shape = (tokens, kv_heads, group, dim, bits, planes)
    check_against_the_reference("cuda", torch.bfloat16, make_numbers, *shape)


def test_no_queries_and_wrong_arguments(device) -> None:
    encoder = cases.make("asymmetric", 2, 3, 16, query_bits=3).to(device, torch.float32)
    q = torch.randn(4, 6, 32, device=device)
    assert encoder._launch_queries(q[:0, :, :16]).codes.shape == (0, 6, 2)
    with pytest.raises(ValueError, match=r"q\.stride\(2\): expected 1, found 2"):
        encoder._launch_queries(q[..., ::2])
    with pytest.raises(
        ValueError, match=r"q\.dtype: expected torch\.float32, found torch\.float16"
    ):
        encoder._launch_queries(q[..., :16].half())
    wide = cases.make("asymmetric", 2, 3, 16, 1056).to(device, torch.float32)
    with pytest.raises(ValueError, match=r"bits: expected at most 1024, found 1056"):
        wide._launch_queries(q[..., :16])
