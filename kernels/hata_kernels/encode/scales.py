"""Scales of keys: small integers stored beside the codes, for the reference and the kernels."""

from __future__ import annotations

import torch

from ..checks import expect, expect_tensor

SIZES = ("norm", "projections")


def check_scales(
    scales: torch.Tensor | None,
    scale_step: torch.Tensor | None,
    out: torch.Tensor,
    kv_heads: int,
    scale_of: str,
) -> int:
    """Check the buffer of scales beside codes ``out``, and the step of each KV head.

    Returns
    -------
    int
        The largest scale that fits; 0 without scales.

    Raises
    ------
    ValueError
        When a shape, dtype or device does not fit, the steps are missing, ``scale_of`` is not
        known, or the codes are those of queries.
    """
    if scales is None:
        return 0
    group = out.shape[1] // kv_heads
    expect(group == 1, "x with scales", "keys", f"{group} queries per KV head")
    expect(scale_of in SIZES, "scale_of", " or ".join(SIZES), scale_of)
    shape, dtypes = (out.shape[0], kv_heads), (torch.uint8, torch.int16)
    expect_tensor("scales", scales, shape=shape, dtypes=dtypes, device=out.device, contiguous=True)
    expect(scale_step is not None, "scale_step", "a tensor, because scales is given", None)
    where = {"device": out.device, "contiguous": True}
    expect_tensor("scale_step", scale_step, shape=(kv_heads,), dtypes=(torch.float32,), **where)
    return 2 ** (8 * scales.element_size()) - 1


def whole_scales(size: torch.Tensor, scale_step: torch.Tensor, most: int) -> torch.Tensor:
    """Round the sizes of keys to whole steps.

    Parameters
    ----------
    size : torch.Tensor
        float32 ``[T, kv_heads]``, not negative.
    scale_step : torch.Tensor
        float32 ``[kv_heads]``, positive.
    most : int
        The largest scale that fits.

    Returns
    -------
    torch.Tensor
        int32 ``[T, kv_heads]``: ``floor(size / scale_step[h] + 1/2)``, at most ``most``.
    """
    return (size / scale_step + 0.5).floor().clamp(0, most).int()


def scatter(buffer: torch.Tensor, slots: torch.Tensor | None, rows: torch.Tensor) -> torch.Tensor:
    """Write row t to ``buffer[slots[t]]``, or without slots to ``buffer[t]``; return the buffer.

    Integers keep the low bits that the buffer's dtype has room for.
    """
    rows = rows.to(buffer.dtype)
    return buffer.copy_(rows) if slots is None else buffer.index_copy_(0, slots.long(), rows)
