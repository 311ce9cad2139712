"""Triton copy of a step's rows: one launch, and of every row only its tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from .naive import SHARE_UNIT, check_rows

# Slots of a program.
CHUNK = 4096


@triton.jit
def _copy_rows_kernel(
    table_ptr,
    rows_ptr,
    seq_lens_ptr,
    token_slots_ptr,
    lengths_ptr,
    budgets_ptr,
    table_stride,
    width,
    most,
    SHARES: tl.constexpr,
    COUNT: tl.constexpr,
    UNIT: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """One program: a chunk of one row; the first one also has the row's length and budgets."""
    row = tl.program_id(0).to(tl.int64)
    start = tl.program_id(1) * CHUNK
    length = tl.load(seq_lens_ptr + row).to(tl.int64)
    if start >= length:
        return
    request = tl.load(rows_ptr + row).to(tl.int64)
    place = start + tl.arange(0, CHUNK)
    valid = place < length
    slots = tl.load(table_ptr + request * table_stride + place, mask=valid, other=0)
    tl.store(token_slots_ptr + row * width + place, slots, mask=valid)
    if start == 0:
        tl.store(lengths_ptr + row, length.to(tl.int32))
        for number in tl.static_range(COUNT):
            share = (length * SHARES[3 * number] + (UNIT - 1)) // UNIT
            share = tl.minimum(tl.maximum(share, SHARES[3 * number + 1]), SHARES[3 * number + 2])
            budget = tl.minimum(length, share).to(tl.int32)
            tl.store(budgets_ptr + number * most + row, budget)


def copy_rows_triton(
    req_to_token: torch.Tensor,
    rows: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    longest: int,
    shares: Sequence[tuple[int, int, int]],
    token_slots: torch.Tensor,
    lengths: torch.Tensor,
    budgets: torch.Tensor,
) -> None:
    """Copy rows on the GPU; same contract as `copy_rows_naive`.

    Lengths on the device are trusted to be at most ``longest``, by which the launch is sized.

    Raises
    ------
    ValueError
        As `copy_rows_naive`.
    """
    out = (token_slots, lengths, budgets)
    check_rows(req_to_token, rows, seq_lens, longest, shares, *out)
    if rows.shape[0] == 0:
        return
    _copy_rows_kernel[(rows.shape[0], triton.cdiv(longest, CHUNK))](
        req_to_token,
        rows,
        seq_lens,
        *out,
        req_to_token.stride(0),
        token_slots.stride(0),
        budgets.stride(0) if shares else 0,
        SHARES=tuple(number for share in shares for number in share),
        COUNT=len(shares),
        UNIT=SHARE_UNIT,
        CHUNK=CHUNK,
        num_warps=4,
    )
