"""What the last launch of the ranking does for a row whose list fits into registers."""

from __future__ import annotations

import triton
import triton.language as tl

from .tokens import bin_place, unpack_entries


@triton.jit
def from_counts(counts_row, found, budget, UNIT: tl.constexpr, BIN_BITS: tl.constexpr):
    """Largest multiple of UNIT that as many candidates reach as the budget has."""
    bin = tl.arange(0, 1 << BIN_BITS)
    counts = tl.load(counts_row + bin_place(bin, BIN_BITS))
    # It falls as the score grows: the threshold is the last score that enough candidates reach.
    at_least = found - tl.cumsum(counts, axis=0) + counts
    return tl.max(tl.where(at_least >= budget, bin, 0), axis=0) * UNIT


@triton.jit
def _sums(numbers, SIZE: tl.constexpr):
    """Inclusive prefix sums of ``numbers [SIZE]``: of rows that a warp holds, then of rows.

    One scan of all of them would have each warp add up what every other holds, row by row.
    """
    rows = tl.reshape(numbers, (SIZE // 64, 64))
    totals = tl.sum(rows, axis=1)
    before = tl.cumsum(totals, axis=0) - totals
    return tl.reshape(tl.cumsum(rows, axis=1) + before[:, None], (SIZE,))


@triton.jit
def take_held(
    counts_row,
    entries_row,
    tiles_row,
    out_row,
    found,
    used,
    budget,
    SCORE_BITS: tl.constexpr,
    BIN_BITS: tl.constexpr,
    HELD: tl.constexpr,
    TILES: tl.constexpr,
):
    """Take the best of a row's list, which is read once: of at most HELD candidates, below 2**15,
    in at most TILES tiles. See `take_listed` for the sums; here 16 bits hold a count of both.
    """
    index = tl.arange(0, HELD)
    here = index < found
    entry = tl.load(entries_row + index, mask=here, other=-1)
    tile = tl.arange(0, TILES)
    piece = tl.load(tiles_row + tile, mask=tile < used, other=0)
    score, its_tile, slot = unpack_entries(entry, SCORE_BITS)
    threshold = from_counts(counts_row, found, budget, 1 << (SCORE_BITS - BIN_BITS), BIN_BITS)
    for bit in tl.static_range(SCORE_BITS - BIN_BITS):
        higher = threshold + (1 << (SCORE_BITS - BIN_BITS - 1 - bit))
        reached = tl.sum((score >= higher).to(tl.int32), axis=0)
        threshold = tl.where(reached >= budget, higher, threshold)

    one = (score > threshold).to(tl.int32) + ((score == threshold).to(tl.int32) << 16)
    upto = _sums(one, HELD)
    ties_kept = budget - (tl.sum(one, axis=0) & 0xFFFF)
    begin = (piece >> 32).to(tl.int32)
    end = begin + (piece & 0x7FFFFFFF).to(tl.int32)
    before = tl.where(begin > 0, tl.gather(upto, tl.maximum(begin - 1, 0), 0), 0)
    until = tl.where(end > 0, tl.gather(upto, tl.maximum(end - 1, 0), 0), 0)
    kept = until - before
    shift = tl.cumsum(kept, axis=0) - kept - before
    place = upto - one + tl.gather(shift, tl.where(here, its_tile, 0), 0)
    ties = place >> 16
    keep = here & ((score > threshold) | ((score == threshold) & (ties < ties_kept)))
    tl.store(out_row + (place & 0xFFFF) + tl.minimum(ties, ties_kept), slot, mask=keep)
