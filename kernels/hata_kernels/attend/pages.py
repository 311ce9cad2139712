"""Triton page table: selected slots into FlashInfer's page indices."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..checks import expect, expect_tensor
from ..tally import check_tally
from .gather_kernels import _count_attended


@triton.jit
def _pages_kernel(
    slots_ptr,
    indptr_ptr,
    pages_ptr,
    seq_lens_ptr,
    tally_ptr,
    k,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Pages of one row: slot * HEADS + head, stored back to back as indptr says."""
    row = tl.program_id(0)
    begin = tl.load(indptr_ptr + row)
    count = tl.load(indptr_ptr + row + 1) - begin
    if tally_ptr is not None:  # noqa: SIM102 - decided when it is compiled
        if (tl.program_id(1) == 0) & (row % HEADS == 0):
            slots_row = slots_ptr + row.to(tl.int64) * k
            _count_attended(tally_ptr, slots_row, seq_lens_ptr, row // HEADS, count)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    valid = column < tl.minimum(count, k)
    slot = tl.load(slots_ptr + row.to(tl.int64) * k + column, mask=valid, other=0)
    # A -1 here means the caller planned more tokens than were selected. The reserved slot 0 gives
    # a wrong answer for that row; a negative page would read outside the pool.
    page = tl.maximum(slot, 0) * HEADS + row % HEADS
    tl.store(pages_ptr + begin + column, page, mask=valid)


def write_pages(
    slots: torch.Tensor,
    indptr: torch.Tensor,
    pages: torch.Tensor,
    seq_lens: torch.Tensor | None = None,
    tally: torch.Tensor | None = None,
) -> None:
    """Turn a selection into page indices of the pool viewed as ``[slots * kv_heads, 1, 1, D]``.

    Parameters
    ----------
    slots : torch.Tensor
        int32 ``[bs, kv_heads, k]``, contiguous.
    indptr : torch.Tensor
        int32 ``[at least bs * kv_heads + 1]``: row r owns ``pages[indptr[r] : indptr[r + 1]]``, at
        most k of them. Read on the device, so the launch does not depend on it.
    pages : torch.Tensor
        int32, written. It and ``indptr`` are `SparseDecode`'s own, and trusted.
    seq_lens : torch.Tensor, optional
        Integers ``[bs]``: the contexts, for the tally.
    tally : torch.Tensor, optional
        See `hata_kernels.tally`: counts what the rows' pages will be attended for.

    Raises
    ------
    ValueError
        When shape, dtype or contiguity of the slots or contexts do not fit.
    """
    expect_tensor("slots", slots, shape=(None, None, None), dtypes=(torch.int32,), contiguous=True)
    batch, kv_heads, k = slots.shape
    rows = batch * kv_heads
    expect(k >= 1, "slots.shape[2]", "at least 1", k)
    check_tally(tally, slots.device)
    if tally is not None:
        expect(seq_lens is not None, "seq_lens", "the contexts, to count them", None)
        expect_tensor("seq_lens", seq_lens, shape=(batch,), device=slots.device, contiguous=True)
    block = min(1024, triton.next_power_of_2(k))
    _pages_kernel[(rows, triton.cdiv(k, block))](
        slots, indptr, pages, seq_lens, tally, k, HEADS=kv_heads, BLOCK=block
    )
