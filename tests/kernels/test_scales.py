"""Scales of keys: the CPU encoder against float64, the Triton one against the CPU one."""

from __future__ import annotations

import pytest
import torch

from hata_kernels.encode import encode_naive
from hata_kernels.encode.triton import encode_triton

SCALES = pytest.mark.parametrize("scale_dtype", [torch.uint8, torch.int16], ids=str)
OF = pytest.mark.parametrize("scale_of", ["norm", "projections"])

# tokens, KV heads, head size, bits
SHAPES = [
    pytest.param(1, 3, 64, 128, id="T1-H3-D64-r128"),
    pytest.param(63, 2, 33, 96, id="T63-H2-D33-r96"),
    pytest.param(70, 1, 128, 256, id="T70-H1-D128-r256"),
]
RESERVED = 77


def make_inputs(scale_of, scale_dtype, tokens, kv_heads, dim, bits):
    """Keys of many lengths, of 0 too, weights, biases, and steps that some keys are too long for.

    Whole numbers, small enough for half precision: projections are exact, and many are zero.
    """
    k = torch.randint(-3, 4, (tokens, kv_heads, dim)).float()
    k *= torch.rand(tokens, kv_heads, dim) < 0.1 + torch.rand(tokens, kv_heads, 1)
    k[1:2] = 0
    weight = torch.randint(-1, 2, (kv_heads, dim, bits)).float()
    bias = torch.randint(-2, 3, (kv_heads, bits)).float()
    most = 2 ** (8 * scale_dtype.itemsize) - 1
    size = sizes_of(scale_of, k, weight, bias)
    step = (0.9 * size.amax(dim=0).clamp(min=1) / most).float()
    return k, weight, bias, step


def sizes_of(scale_of, k, weight, bias) -> torch.Tensor:
    """What scales are rounded from, ``[T, kv_heads]`` in float64."""
    if scale_of == "norm":
        return k.double().norm(dim=-1)
    x = torch.einsum("thn,hnr->thr", k.double(), weight.double()) + bias.double()
    return x.abs().mean(dim=-1)


def unsigned(scales: torch.Tensor) -> torch.Tensor:
    """Scales as the integers that they stand for, on the CPU."""
    return scales.cpu().long() & (2 ** (8 * scales.element_size()) - 1)


@OF
@SCALES
@pytest.mark.parametrize(("tokens", "kv_heads", "dim", "bits"), SHAPES)
def test_naive_rounds_to_steps(scale_of, scale_dtype, tokens, kv_heads, dim, bits) -> None:
    k, weight, bias, step = make_inputs(scale_of, scale_dtype, tokens, kv_heads, dim, bits)
    scales = torch.full((tokens, kv_heads), RESERVED, dtype=scale_dtype)
    filled = {"scales": scales, "scale_step": step, "scale_of": scale_of}
    codes = encode_naive(k, weight, bias=bias, **filled)
    assert torch.equal(codes, encode_naive(k, weight, bias=bias))
    most = 2 ** (8 * scale_dtype.itemsize) - 1
    steps = (sizes_of(scale_of, k, weight, bias) / step.double()).clamp(max=most)
    # Half a step, and the rounding of float32 at 16 bits.
    assert bool(((unsigned(scales) - steps).abs() <= 0.5 + 2e-6 * steps + 1e-9).all())
    assert unsigned(scales).max() == most


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@OF
@SCALES
@pytest.mark.parametrize(("tokens", "kv_heads", "dim", "bits"), SHAPES)
def test_triton_is_the_reference(
    device, poison, dtype, scale_of, scale_dtype, tokens, kv_heads, dim, bits
) -> None:
    k, weight, bias, step = make_inputs(scale_of, scale_dtype, tokens, kv_heads, dim, bits)
    slots = torch.randperm(100)[:tokens].int()

    def run(implementation, where):
        codes = poison(100, kv_heads, bits // 32, dtype=torch.int32, device=where)
        scales = torch.full((100, kv_heads), RESERVED, dtype=scale_dtype, device=where)
        implementation(
            k.to(where, dtype),
            weight.to(where, dtype),
            bias=bias.to(where),
            out=codes,
            slots=slots.to(where),
            scales=scales,
            scale_step=step.to(where),
            scale_of=scale_of,
        )
        return codes.cpu(), scales

    codes, scales = run(encode_triton, device)
    expected_codes, expected_scales = run(encode_naive, "cpu")
    assert torch.equal(codes, expected_codes)
    assert (unsigned(scales) - unsigned(expected_scales)).abs().max() <= 1
    rest = torch.ones(100, dtype=torch.bool)
    rest[slots.long()] = False
    assert codes[rest].eq(-987654321).all()
    assert scales.cpu()[rest].eq(RESERVED).all()


@pytest.mark.gpu
def test_norms_leave_the_codes_alone(poison) -> None:
    # Norms that were summed between the products of the main loop gave a few keys wrong bits, not
    # the same ones every time, at these sizes (sm_90, Triton 3.6).
    tokens, kv_heads, dim, bits, slot_count = 3000, 8, 128, 128, 4000
    k = torch.randn(tokens, kv_heads, dim).bfloat16()
    weight = torch.randn(kv_heads, dim, bits).bfloat16()
    step = torch.full((kv_heads,), 1.5 * dim**0.5 / 255)
    expected = torch.zeros(tokens, kv_heads, dtype=torch.uint8)
    encode_naive(k, weight, scales=expected, scale_step=step)
    k, weight, step = k.cuda(), weight.cuda(), step.cuda()
    for _ in range(4):
        slots = torch.randperm(slot_count, device="cuda")[:tokens]
        plain, codes = (
            poison(slot_count, kv_heads, bits // 32, dtype=torch.int32, device="cuda")
            for _ in range(2)
        )
        scales = torch.full((slot_count, kv_heads), RESERVED, dtype=torch.uint8, device="cuda")
        encode_triton(k, weight, out=plain, slots=slots)
        encode_triton(
            k, weight, out=codes, slots=slots, scales=scales, scale_step=step, scale_of="norm"
        )
        assert torch.equal(codes, plain)
        assert (unsigned(scales[slots]) - unsigned(expected)).abs().max() <= 1
        rest = torch.ones(slot_count, dtype=torch.bool)
        rest[slots.cpu()] = False
        assert scales.cpu()[rest].eq(RESERVED).all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": torch.randn(4, 6, 64)}, "x with scales: expected keys, found 2 queries per KV head"),
        ({"scale_of": "sum"}, "scale_of: expected norm or projections, found sum"),
        ({"scale_step": None}, "scale_step: expected a tensor, because scales is given"),
        ({"scale_step": torch.ones(2)}, r"scale_step\.shape: expected \[3\], found \[2\]"),
        ({"scale_step": torch.ones(6)[::2]}, "scale_step strides: expected a contiguous tensor"),
        ({"scales": torch.zeros(5, 3, dtype=torch.uint8)}, r"scales\.shape: expected \[4, 3\]"),
        ({"scales": torch.zeros(4, 3, dtype=torch.int32)}, r"scales\.dtype"),
    ],
    ids=["queries", "of", "none", "steps", "strided-steps", "shape", "dtype"],
)
def test_wrong_scales_are_named(changed, message) -> None:
    good = {
        "x": torch.randn(4, 3, 64),
        "weight": torch.randn(3, 64, 64),
        "scales": torch.zeros(4, 3, dtype=torch.uint8),
        "scale_step": torch.ones(3),
    }
    for implementation in (encode_naive, encode_triton):
        with pytest.raises(ValueError, match=message):
            implementation(**{**good, **changed})
