"""`encode_triton` against projections in float64, one at a time."""

from __future__ import annotations

import pytest
import torch

from encoder_cases import mostly, unpack_bits
from hata_kernels.encode.triton import encode_triton

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("tokens", "heads", "kv_heads", "dim", "bits"), SHAPES)
def test_triton_takes_the_signs(device, poison, dtype, tokens, heads, kv_heads, dim, bits) -> None:
    x = torch.randn(tokens, heads, dim, device=device).to(dtype)
    weight = torch.randn(kv_heads, dim, bits, device=device).to(dtype)
    out = poison(tokens, heads, bits // 32, dtype=torch.int32, device=device)
    assert encode_triton(x, weight, out=out) is out
    assert_codes(out, x, weight)


@pytest.mark.gpu
@pytest.mark.parametrize(("tokens", "heads", "kv_heads", "dim", "bits"), SHAPES)
def test_triton_bfloat16(tokens, heads, kv_heads, dim, bits) -> None:
    # On the GPU only: Triton's interpreter has no bfloat16.
    x = torch.randn(tokens, heads, dim, device="cuda").bfloat16()
    weight = torch.randn(kv_heads, dim, bits, device="cuda").bfloat16()
    assert_codes(encode_triton(x, weight), x, weight)


@pytest.mark.parametrize(("tokens", "heads", "kv_heads", "dim", "bits"), SHAPES)
def test_bias_moves_the_threshold(device, tokens, heads, kv_heads, dim, bits) -> None:
    x = torch.randn(tokens, heads, dim, device=device)
    weight = torch.randn(kv_heads, dim, bits, device=device)
    bias = 2 * dim**0.5 * torch.randn(kv_heads, bits, device=device)
    codes = encode_triton(x, weight, bias)
    assert_codes(codes, x, weight, bias)
    assert not torch.equal(codes, encode_triton(x, weight))


@pytest.mark.parametrize("slot_dtype", [torch.int32, torch.int64], ids=str)
def test_slots_scatter_and_leave_the_rest(device, poison, slot_dtype) -> None:
    x = torch.randn(9, 3, 64, device=device)
    weight = torch.randn(3, 64, 64, device=device)
    slots = (torch.randperm(19)[:9] + 1).to(slot_dtype).to(device)
    slots[-2:] = 0  # padding: both tokens may write the reserved slot
    codes = poison(20, 3, 2, dtype=torch.int32, device=device)
    assert encode_triton(x, weight, out=codes, slots=slots) is codes
    expected = encode_triton(x, weight)
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


def test_no_tokens_and_numbers_that_do_not_fit(device) -> None:
    x, weight = torch.randn(3, 2, 128, device=device), torch.randn(2, 64, 32, device=device)
    assert encode_triton(x[:0, :, :64], weight).shape == (0, 2, 1)
    with pytest.raises(ValueError, match=r"x\.stride\(2\): expected 1, found 2"):
        encode_triton(x[..., ::2], weight)
    with pytest.raises(
        ValueError, match=r"x\.dtype: expected torch\.float32, found torch\.float16"
    ):
        encode_triton(x[..., :64].half(), weight)
