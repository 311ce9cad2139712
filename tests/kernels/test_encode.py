"""Encoders: the CPU one against loops in float64, the Triton one against the CPU one."""

from __future__ import annotations

import inspect

import pytest
import torch

from encoder_cases import mostly
from hata_kernels.bits import unpack_bits
from hata_kernels.encode import (
    encode_naive,
    encode_planes_naive,
    encode_residual_naive,
)
from hata_kernels.encode.triton import encode_triton
from hata_kernels.encode.triton_planes import encode_planes_triton
from hata_kernels.encode.triton_residual import encode_residual_triton

# Projections closer to zero than this, relative to |x| * |w|, may round to either sign.
CLOSE = 1e-5

# tokens, query heads, KV heads, head size, bits
SHAPES = [
    pytest.param(1, 9, 3, 64, 128, id="T1-H9of3-D64-r128"),
    pytest.param(63, 3, 3, 96, 96, id="T63-H3of3-D96-r96"),
    pytest.param(17, 8, 2, 128, 32, id="T17-H8of2-D128-r32"),
    pytest.param(5, 5, 1, 256, 256, id="T5-H5of1-D256-r256"),
    pytest.param(130, 2, 2, 80, 64, id="T130-H2of2-D80-r64"),
]


def projections(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Projections ``[T, H, r]`` in float64, one product at a time, and their scale."""
    x, weight = x.double().cpu(), weight.double().cpu()
    offset = torch.zeros(weight[:, 0].shape) if bias is None else bias.double().cpu()
    group = x.shape[1] // weight.shape[0]
    result = torch.stack(
        [
            torch.stack(
                [token[h] @ weight[h // group] + offset[h // group] for h in range(x.shape[1])]
            )
            for token in x
        ]
    )
    norms = weight.norm(dim=1).repeat_interleave(group, dim=0)
    return result, x.norm(dim=-1, keepdim=True) * norms


def assert_codes(
    codes: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> None:
    """Every bit is the projection's sign, but for those within rounding of zero."""
    value, scale = projections(x, weight, bias)
    bits = unpack_bits(codes.cpu())
    assert bits.shape == value.shape
    clear = value.abs() > CLOSE * scale
    assert mostly(clear)
    assert torch.equal(bits[clear], (value > 0)[clear])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("tokens", "heads", "kv_heads", "dim", "bits"), SHAPES)
def test_naive_takes_the_signs(dtype, tokens, heads, kv_heads, dim, bits) -> None:
    x = torch.randn(tokens, heads, dim).to(dtype)
    weight = torch.randn(kv_heads, dim, bits)
    assert_codes(encode_naive(x, weight), x, weight)


@pytest.mark.parametrize(
    ("reference", "launch"),
    [
        (encode_naive, encode_triton),
        (encode_planes_naive, encode_planes_triton),
        (encode_residual_naive, encode_residual_triton),
    ],
    ids=["one-stage", "planes", "residual"],
)
def test_references_take_the_arguments_of_the_launches(reference, launch) -> None:
    assert inspect.signature(reference) == inspect.signature(launch)


def test_naive_zero_projection_is_a_zero_bit() -> None:
    assert encode_naive(torch.zeros(2, 1, 64), torch.randn(1, 64, 32)).eq(0).all()


@pytest.mark.parametrize(
    ("dtype", "weight_dtype"),
    [
        pytest.param(torch.float32, torch.float32, id="float32"),
        pytest.param(torch.float16, torch.float16, id="float16"),
        pytest.param(torch.float16, torch.float32, id="float16-by-float32"),
    ],
)
@pytest.mark.parametrize(("tokens", "heads", "kv_heads", "dim", "bits"), SHAPES)
def test_triton_takes_the_signs(
    device, poison, dtype, weight_dtype, tokens, heads, kv_heads, dim, bits
) -> None:
    x = torch.randn(tokens, heads, dim, device=device).to(dtype)
    weight = torch.randn(kv_heads, dim, bits, device=device).to(weight_dtype)
    out = poison(tokens, heads, bits // 32, dtype=torch.int32, device=device)
    assert encode_triton(x, weight, out=out) is out
    assert_codes(out, x, weight)


@pytest.mark.gpu
@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("tokens", "heads", "kv_heads", "dim", "bits"), SHAPES)
def test_triton_bfloat16(weight_dtype, tokens, heads, kv_heads, dim, bits) -> None:
    # On the GPU only: Triton's interpreter has no bfloat16.
    x = torch.randn(tokens, heads, dim, device="cuda").bfloat16()
    weight = torch.randn(kv_heads, dim, bits, device="cuda").to(weight_dtype)
    assert_codes(encode_triton(x, weight), x, weight)


@pytest.mark.parametrize("implementation", ["naive", "triton"])
@pytest.mark.parametrize(("tokens", "heads", "kv_heads", "dim", "bits"), SHAPES)
def test_bias_moves_the_threshold(
    device, implementation, tokens, heads, kv_heads, dim, bits
) -> None:
    if implementation == "naive" and device.type == "cuda":
        pytest.skip("encode_naive runs on the CPU")
    run = encode_naive if implementation == "naive" else encode_triton
    x = torch.randn(tokens, heads, dim, device=device)
    weight = torch.randn(kv_heads, dim, bits, device=device)
    bias = 2 * dim**0.5 * torch.randn(kv_heads, bits, device=device)
    codes = run(x, weight, bias=bias)
    assert_codes(codes, x, weight, bias)
    assert not torch.equal(codes, run(x, weight))


@pytest.mark.parametrize("slot_dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("implementation", ["naive", "triton"])
def test_slots_scatter_and_leave_the_rest(device, poison, implementation, slot_dtype) -> None:
    run = encode_naive if implementation == "naive" else encode_triton
    if implementation == "naive" and device.type == "cuda":
        pytest.skip("encode_naive runs on the CPU")
    x = torch.randn(9, 3, 64, device=device)
    weight = torch.randn(3, 64, 64, device=device)
    slots = (torch.randperm(19)[:9] + 1).to(slot_dtype).to(device)
    slots[-2:] = 0  # padding: both tokens may write the reserved slot
    codes = poison(20, 3, 2, dtype=torch.int32, device=device)
    assert run(x, weight, out=codes, slots=slots) is codes
    expected = encode_naive(x.cpu(), weight.cpu()).to(device)
    assert torch.equal(codes[slots[:7].long()], expected[:7])
    assert any(torch.equal(codes[0], expected[token]) for token in (7, 8))
    untouched = torch.ones(20, dtype=torch.bool, device=device)
    untouched[slots.long()] = False
    assert torch.equal(codes[untouched], poison(12, 3, 2, dtype=torch.int32, device=device))


def test_a_slice_of_a_fused_projection_needs_no_copy(device) -> None:
    fused = torch.randn(33, 4 * 64 + 2 * 64, device=device)
    keys = fused[:, 4 * 64 :].unflatten(1, (2, 64))
    weight = torch.randn(2, 64, 32, device=device)
    assert not keys.is_contiguous()
    assert_codes(encode_triton(keys, weight), keys, weight)
    assert_codes(encode_naive(keys.cpu(), weight.cpu()), keys, weight)


def test_no_tokens(device) -> None:
    assert encode_triton(
        torch.empty(0, 2, 64, device=device), torch.randn(2, 64, 32, device=device)
    ).shape == (0, 2, 1)
    assert encode_naive(torch.empty(0, 2, 64), torch.randn(2, 64, 32)).shape == (0, 2, 1)


X, WEIGHT = torch.randn(4, 6, 64), torch.randn(3, 64, 64)
CODES, SLOTS = torch.zeros(8, 6, 2, dtype=torch.int32), torch.arange(4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": X[:, :4]}, r"x\.shape\[1\]: expected a multiple of 3 KV heads, found 4"),
        ({"weight": WEIGHT[..., :48].contiguous()}, "a multiple of 32, found 48"),
        ({"weight": WEIGHT[:, :32]}, r"weight\.shape: expected \[any, 64, any\], found"),
        ({"x": X.int()}, r"x\.dtype: expected .*found torch\.int32"),
        ({"slots": SLOTS}, "out: expected the codes buffer, because slots is given"),
        ({"slots": SLOTS[:3], "out": CODES}, r"slots\.shape: expected \[4\], found \[3\]"),
        ({"bias": torch.zeros(64)}, r"bias\.shape: expected \[3, 64\], found \[64\]"),
        ({"out": CODES}, r"out\.shape: expected \[4, 6, 2\], found \[8, 6, 2\]"),
        ({"slots": SLOTS, "out": CODES.long()}, r"out\.dtype: expected torch\.int32"),
        ({"slots": torch.arange(8)[::2], "out": CODES}, "slots strides: expected a contiguous"),
    ],
    ids=[
        "heads",
        "bits",
        "dim",
        "dtype",
        "no-out",
        "slots",
        "bias",
        "out-shape",
        "out-dtype",
        "strided-slots",
    ],
)
def test_wrong_arguments_are_named(arguments, message: str) -> None:
    for implementation in (encode_naive, encode_triton):
        with pytest.raises(ValueError, match=message):
            implementation(**{"x": X, "weight": WEIGHT, **arguments})
