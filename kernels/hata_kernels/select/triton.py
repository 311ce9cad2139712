"""Triton counting select: exact top-k of small integer scores without a sort.

Scores take at most a few thousand values, so a histogram finds the threshold: keep everything
above it and, of the tokens that equal it, the earliest ones. Three launches over chunks of the
context: count each chunk, find each row's threshold and how much every chunk is preceded by, and
compact in position order. Every sum is of integers in a fixed order, so the result is the same in
every run, and no launch depends on ``seq_lens``: safe inside a CUDA graph.

Servers rank without it (`hata_kernels.rank`); it stays to compare with.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..checks import expect
from .naive import check_select

# Tokens per program. At most 2**15 - 1, because a chunk's counts are stored in int16.
CHUNK = 4096


@triton.jit
def _count_kernel(
    scores_ptr,
    seq_lens_ptr,
    counts_ptr,
    width,
    chunks,
    HEADS: tl.constexpr,
    CHUNK: tl.constexpr,
    BINS: tl.constexpr,
):
    """Histogram of one chunk of one row."""
    chunk = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    start = chunk * CHUNK
    length = tl.minimum(tl.load(seq_lens_ptr + row // HEADS).to(tl.int32), width)
    if start >= length:
        return
    token = start + tl.arange(0, CHUNK)
    valid = token < length
    score = tl.load(scores_ptr + row * width + token, mask=valid, other=0).to(tl.int32)
    counts = tl.histogram(score, BINS, mask=valid)
    place = counts_ptr + (row * chunks + chunk) * BINS + tl.arange(0, BINS)
    tl.store(place, counts.to(tl.int16))


@triton.jit
def _threshold_kernel(
    counts_ptr,
    seq_lens_ptr,
    budgets_ptr,
    threshold_ptr,
    before_ptr,
    out_ptr,
    width,
    chunks,
    k_max,
    HEADS: tl.constexpr,
    CHUNK: tl.constexpr,
    BINS: tl.constexpr,
    TILE: tl.constexpr,
    PAD: tl.constexpr,
):
    """Threshold of one row, and what precedes each of its chunks; pads the result with -1."""
    row = tl.program_id(0).to(tl.int64)
    length = tl.minimum(tl.load(seq_lens_ptr + row // HEADS).to(tl.int32), width)
    budget = tl.minimum(tl.load(budgets_ptr + row // HEADS), tl.minimum(length, k_max))
    used = tl.cdiv(length, CHUNK)
    value = tl.arange(0, BINS)

    total = tl.zeros((BINS,), dtype=tl.int32)
    for first in range(0, used, TILE):
        chunk = first + tl.arange(0, TILE)
        place = counts_ptr + (row * chunks + chunk)[:, None] * BINS + value[None, :]
        counts = tl.load(place, mask=(chunk < used)[:, None], other=0).to(tl.int32)
        total += tl.sum(counts, axis=0)
    # Tokens that score at least v; it falls as v grows, so the last v with enough is the threshold.
    at_least = length - tl.cumsum(total, axis=0) + total
    threshold = tl.max(tl.where(at_least >= budget, value, 0), axis=0)
    ties_kept = budget - tl.sum(tl.where(value > threshold, total, 0), axis=0)
    tl.store(threshold_ptr + row * 2, threshold)
    tl.store(threshold_ptr + row * 2 + 1, ties_kept)

    above_before = 0
    ties_before = 0
    for first in range(0, used, TILE):
        chunk = first + tl.arange(0, TILE)
        place = counts_ptr + (row * chunks + chunk)[:, None] * BINS + value[None, :]
        counts = tl.load(place, mask=(chunk < used)[:, None], other=0).to(tl.int32)
        above = tl.sum(tl.where((value > threshold)[None, :], counts, 0), axis=1)
        ties = tl.sum(tl.where((value == threshold)[None, :], counts, 0), axis=1)
        before = before_ptr + (row * chunks + chunk) * 2
        mask = chunk < used
        tl.store(before, above_before + tl.cumsum(above, axis=0) - above, mask=mask)
        tl.store(before + 1, ties_before + tl.cumsum(ties, axis=0) - ties, mask=mask)
        above_before += tl.sum(above, axis=0)
        ties_before += tl.sum(ties, axis=0)

    for first in range(0, k_max, PAD):
        column = first + tl.arange(0, PAD)
        tl.store(out_ptr + row * k_max + column, -1, mask=(column >= budget) & (column < k_max))


@triton.jit
def _compact_kernel(
    scores_ptr,
    token_slots_ptr,
    seq_lens_ptr,
    threshold_ptr,
    before_ptr,
    out_ptr,
    token_slots_stride,
    width,
    chunks,
    k_max,
    HEADS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Write the kept tokens of one chunk of one row to their places in the result."""
    chunk = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    start = chunk * CHUNK
    length = tl.minimum(tl.load(seq_lens_ptr + row // HEADS).to(tl.int32), width)
    if start >= length:
        return
    token = start + tl.arange(0, CHUNK)
    valid = token < length
    score = tl.load(scores_ptr + row * width + token, mask=valid, other=-1).to(tl.int32)
    threshold = tl.load(threshold_ptr + row * 2)
    ties_kept = tl.load(threshold_ptr + row * 2 + 1)
    before = before_ptr + (row * chunks + chunk) * 2
    # Tokens beyond the length read as -1: below every threshold.
    above = (score > threshold).to(tl.int32)
    tie = (score == threshold).to(tl.int32)
    above_rank = tl.load(before) + tl.cumsum(above, axis=0) - above
    tie_rank = tl.load(before + 1) + tl.cumsum(tie, axis=0) - tie
    keep = (above == 1) | ((tie == 1) & (tie_rank < ties_kept))
    place = above_rank + tl.minimum(tie_rank, ties_kept)
    slots = token_slots_ptr + (row // HEADS) * token_slots_stride + token
    tl.store(out_ptr + row * k_max + place, tl.load(slots, mask=keep, other=0), mask=keep)


def select_triton(
    scores: torch.Tensor,
    token_slots: torch.Tensor,
    seq_lens: torch.Tensor,
    budgets: torch.Tensor,
    *,
    k_max: int,
    levels: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Select on the GPU with a budget per request; same contract and result as `select_naive`.

    Parameters
    ----------
    scores, token_slots, seq_lens, k_max, out
        As in `select_naive`. Scores within the lengths are integers in ``[0, levels)``.
    budgets : torch.Tensor
        int32 ``[bs]``, values of 1 to ``k_max``, on the GPU.
    levels : int
        ``score_levels(G, r)``.

    Returns
    -------
    torch.Tensor
        int32 ``[bs, kv_heads, k_max]``: the kept slots in position order, then -1.

    Raises
    ------
    ValueError
        When a shape, dtype or device does not fit.
    """
    expect(levels >= 2, "levels", "at least 2", levels)
    check_select(scores, token_slots, seq_lens, budgets, k_max, out)
    batch, kv_heads, width = scores.shape
    rows, chunks, bins = batch * kv_heads, triton.cdiv(width, CHUNK), triton.next_power_of_2(levels)
    device = scores.device
    if out is None:
        out = torch.empty((batch, kv_heads, k_max), dtype=torch.int32, device=device)
    counts = torch.empty((rows, chunks, bins), dtype=torch.int16, device=device)
    threshold = torch.empty((rows, 2), dtype=torch.int32, device=device)
    before = torch.empty((rows, chunks, 2), dtype=torch.int32, device=device)
    _count_kernel[(chunks, rows)](
        scores,
        seq_lens,
        counts,
        width,
        chunks,
        HEADS=kv_heads,
        CHUNK=CHUNK,
        BINS=bins,
        num_warps=8,
    )
    _threshold_kernel[(rows,)](
        counts,
        seq_lens,
        budgets,
        threshold,
        before,
        out,
        width,
        chunks,
        k_max,
        HEADS=kv_heads,
        CHUNK=CHUNK,
        BINS=bins,
        TILE=max(1, min(64, 8192 // bins)),
        PAD=1024,
        num_warps=8,
    )
    _compact_kernel[(chunks, rows)](
        scores,
        token_slots,
        seq_lens,
        threshold,
        before,
        out,
        token_slots.stride(0),
        width,
        chunks,
        k_max,
        HEADS=kv_heads,
        CHUNK=CHUNK,
        num_warps=8,
    )
    return out
