"""Queries as bit-planes: the CPU encoder against loops, the Triton one against the CPU one."""

from __future__ import annotations

import math

import pytest
import torch

from encoder_cases import mostly
from hata_kernels.bits import unpack_bits
from hata_kernels.encode import encode_planes_naive
from hata_kernels.encode.triton_planes import encode_planes_triton

# tokens, KV heads, group, head size, bits, planes
SHAPES = [
    pytest.param(1, 3, 3, 64, 128, 4, id="T1-G3of3-D64-r128-B4"),
    pytest.param(19, 1, 7, 80, 96, 1, id="T19-G7of1-D80-r96-B1"),
    pytest.param(33, 2, 1, 20, 32, 3, id="T33-G1of2-D20-r32-B3"),
    pytest.param(16, 2, 2, 33, 256, 8, id="T16-G2of2-D33-r256-B8"),
]
CLIP = 1.7

# Levels closer to the next one than this share of all levels may round to either.
CLOSE = 1e-5


def whole(*shape: int) -> torch.Tensor:
    """Whole numbers: exact in half precision, and their sums in float32; many sums are zero."""
    return torch.randint(-1, 2, shape).float()


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


@pytest.mark.parametrize("planes", [1, 3, 8])
def test_naive_rounds_down_to_levels(poison, planes) -> None:
    tokens, kv_heads, group, dim, bits = 4, 2, 2, 12, 32
    q, weight, bias = make_inputs(torch.randn, tokens, kv_heads, group, dim, bits)
    out = poison(tokens, kv_heads * planes, 1, dtype=torch.int32)
    assert encode_planes_naive(q, weight, bias, planes=planes, clip=CLIP, out=out) is out
    half = 2 ** (planes - 1)
    for t in range(tokens):
        for h in range(kv_heads):
            vector = [x for g in range(group) for x in q[t, h * group + g].tolist()]
            columns = zip(weight[h].T.tolist(), bias[h].tolist(), strict=True)
            u = [sum(map(float.__mul__, vector, column)) + offset for column, offset in columns]
            rms = math.sqrt(sum(x * x for x in u) / bits) or 1.0
            for j, x in enumerate(u):
                steps = x / (CLIP * rms / half)
                if steps != 0 and abs(steps - round(steps)) < CLOSE * 2 * half:
                    continue
                code = min(max(math.floor(steps), -half), half - 1) + half
                found = [(int(out[t, h * planes + p, 0]) >> j) & 1 for p in range(planes)]
                assert found == [(code >> p) & 1 for p in range(planes)]


def check_against_the_reference(
    poison, device, dtypes, make_numbers, tokens, kv_heads, group, dim, bits, planes
) -> None:
    """Levels of `encode_planes_triton` are those of `encode_planes_naive`.

    But for those within rounding of the next one, which may differ by one; projections of exactly
    zero are at the middle step, and may not.
    """
    q, weight, bias = make_inputs(make_numbers, tokens, kv_heads, group, dim, bits)
    q, weight = q.to(dtypes[0]), weight.to(dtypes[1])
    options = {"planes": planes, "clip": CLIP}
    out = poison(tokens, kv_heads * planes, bits // 32, dtype=torch.int32, device=device)
    here = (tensor.to(device) for tensor in (q, weight, bias))
    assert encode_planes_triton(*here, **options, out=out) is out
    found = levels_of(out, planes)
    expected = levels_of(encode_planes_naive(q, weight, bias, **options), planes)
    steps = in_steps(q, weight, bias, planes)
    clear = ((steps - steps.round()).abs() > CLOSE * 2**planes) | (steps == 0)
    assert mostly(clear, 0.9)
    assert torch.equal(found[clear], expected[clear])
    assert (found - expected).abs().max() <= 1
    assert found[steps == 0].eq(0).all()


@pytest.mark.parametrize("make_numbers", [whole, torch.randn], ids=["whole", "real"])
@pytest.mark.parametrize(
    "dtypes",
    [
        pytest.param((torch.float32, torch.float32), id="float32"),
        pytest.param((torch.float16, torch.float16), id="float16"),
        pytest.param((torch.float16, torch.float32), id="float16-by-float32"),
    ],
)
@pytest.mark.parametrize(("tokens", "kv_heads", "group", "dim", "bits", "planes"), SHAPES)
def test_triton_is_the_reference(
    device, poison, dtypes, make_numbers, tokens, kv_heads, group, dim, bits, planes
) -> None:
    shape = (tokens, kv_heads, group, dim, bits, planes)
    check_against_the_reference(poison, device, dtypes, make_numbers, *shape)


@pytest.mark.gpu
@pytest.mark.parametrize("make_numbers", [whole, torch.randn], ids=["whole", "real"])
@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("tokens", "kv_heads", "group", "dim", "bits", "planes"), SHAPES)
def test_triton_is_the_reference_in_bfloat16(
    poison, weight_dtype, make_numbers, tokens, kv_heads, group, dim, bits, planes
) -> None:
    # On the GPU only: Triton's interpreter has no bfloat16.
    dtypes, shape = (torch.bfloat16, weight_dtype), (tokens, kv_heads, group, dim, bits, planes)
    check_against_the_reference(poison, "cuda", dtypes, make_numbers, *shape)


def test_no_queries_and_wrong_arguments(device) -> None:
    here = {"device": device}
    good = {
        "q": torch.randn(4, 6, 16, **here),
        "weight": torch.randn(2, 48, 64, **here),
        "bias": torch.randn(2, 64, **here),
        "planes": 3,
        "clip": CLIP,
    }
    out = torch.zeros(4, 6, 2, dtype=torch.int32, **here)
    wide = {"weight": torch.randn(2, 48, 1056, **here), "bias": torch.randn(2, 1056, **here)}
    own = [
        ({"q": torch.randn(4, 6, 32, **here)[..., ::2]}, r"q\.stride\(2\): expected 1, found 2"),
        (wide, r"weight\.shape\[2\]: expected at most 1024, found 1056"),
    ]
    for changed, message in own:
        with pytest.raises(ValueError, match=message):
            encode_planes_triton(**{**good, **changed})
    shared = [
        ({"q": good["q"][:, :5]}, r"q\.shape\[1\]: expected a multiple of 2 KV heads, found 5"),
        ({"q": good["q"].int()}, r"q\.dtype"),
        ({"q": good["q"][:, :4]}, r"weight\.shape\[1\]: expected G \* D = 32, found 48"),
        ({"weight": good["weight"][..., :48].contiguous()}, "expected a multiple of 32, found 48"),
        ({"weight": good["weight"].transpose(0, 1)}, "q.shape|weight strides"),
        ({"bias": good["bias"][:, :32]}, r"bias\.shape: expected \[2, 64\], found \[2, 32\]"),
        ({"planes": 9}, "planes: expected 1 to 8, found 9"),
        ({"planes": 2, "out": out}, r"out\.shape: expected \[4, 4, 2\], found \[4, 6, 2\]"),
        ({"out": out.long()}, r"out\.dtype: expected torch\.int32"),
    ]
    for implementation in (encode_planes_naive, encode_planes_triton):
        for changed, message in shared:
            with pytest.raises(ValueError, match=message):
                implementation(**{**good, **changed})
        assert implementation(**{**good, "q": good["q"][:0]}).shape == (0, 6, 2)
