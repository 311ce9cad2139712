"""CPU encoder of keys in two stages: signs, then signs of what the first ones left over."""

from __future__ import annotations

import torch

from ..bits import pack_bits
from ..checks import expect, expect_tensor
from ..tally import count_encoded
from .naive import check_encode, project
from .scales import check_scales, scatter, whole_scales


def check_residual(
    k: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    residual_weight: torch.Tensor,
    out: torch.Tensor,
    slots: torch.Tensor,
) -> None:
    """Check the arguments of `encode_residual_naive` and of its Triton counterpart.

    Raises
    ------
    ValueError
        When a shape, dtype or device does not fit.
    """
    group, _ = check_encode(k, weight, bias, out, slots)
    expect(group == 1, "k", "keys", f"{group} heads per KV head")
    kv_heads, _, bits = weight.shape
    expect_tensor(
        "residual_weight",
        residual_weight,
        shape=(kv_heads, bits // 2, bits // 2),
        dtypes=(weight.dtype,),
        device=k.device,
        contiguous=True,
    )


def project_in_stages(
    k: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, residual_weight: torch.Tensor
) -> torch.Tensor:
    """Return the numbers whose signs are the bits of two stages.

    Parameters are those of `encode_residual_naive`.

    Returns
    -------
    torch.Tensor
        float32 ``[T, kv_heads, r]``: the first m projections, then the last m with the signs of
        the first, -1 or 1 (a projection of 0 counts as negative), times ``residual_weight`` added.
    """
    first, second = project(k, weight, bias).chunk(2, dim=-1)
    signs = torch.where(first > 0, 1.0, -1.0)
    return torch.cat([first, second + project(signs, residual_weight)], dim=-1)


def encode_residual_naive(
    k: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    residual_weight: torch.Tensor,
    *,
    out: torch.Tensor,
    slots: torch.Tensor,
    scales: torch.Tensor | None = None,
    scale_step: torch.Tensor | None = None,
    tally: torch.Tensor | None = None,
) -> torch.Tensor:
    """Encode keys in two stages and write their codes to their slots.

    With m = r / 2: the first m bits are the signs of the first m projections; the signs, -1 or 1,
    times ``residual_weight`` are added to the last m projections, whose signs are the other bits.

    Ours; see `hata_kernels.encoders.AsymmetricEncoder`.

    Parameters
    ----------
    k : torch.Tensor
        float32, bfloat16 or float16 ``[T, kv_heads, D]``.
    weight : torch.Tensor
        ``[kv_heads, D, r]``, contiguous, r a multiple of 32. Products are computed in float32.
    bias : torch.Tensor
        ``[kv_heads, r]``, contiguous.
    residual_weight : torch.Tensor
        ``[kv_heads, m, m]``, contiguous, of the dtype of ``weight``.
    out : torch.Tensor
        int32 ``[S, kv_heads, r // 32]``, contiguous: the codes buffer.
    slots : torch.Tensor
        int64 or int32 ``[T]``: token t is written to ``out[slots[t]]``.
    scales, scale_step : torch.Tensor, optional
        As in `encode_naive`; m(k) is the mean absolute value of the first m projections.
    tally : torch.Tensor, optional
        See `hata_kernels.tally`.

    Returns
    -------
    torch.Tensor
        ``out``.

    Raises
    ------
    ValueError
        When a shape, dtype or device does not fit.
    """
    check_residual(k, weight, bias, residual_weight, out, slots)
    kv_heads, _, bits = weight.shape
    most = check_scales(scales, scale_step, out, kv_heads, "projections")
    numbers = project_in_stages(k, weight, bias, residual_weight)
    if scales is not None:
        size = numbers[..., : bits // 2].abs().mean(dim=-1)
        scatter(scales, slots, whole_scales(size, scale_step, most))
    count_encoded(tally, slots)
    return scatter(out, slots, pack_bits(numbers > 0))
