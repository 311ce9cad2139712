"""What the last launch of the ranking does for a list that fits into registers."""

from __future__ import annotations

import triton
import triton.language as tl

from .tokens import load_entries


@triton.jit
def holds(size, HELD: tl.constexpr, number: tl.constexpr):
    """Whether of the sizes HELD this one is the smallest that holds a list of ``size``."""
    if number == 0:
        return size <= HELD[0]
    else:
        return (size <= HELD[number]) & (size > HELD[number - 1])


@triton.jit
def count_excess(score, floor, here, BINS: tl.constexpr):
    """How many of ``[N]`` are so far above the floor ``[BINS]``; the last, or farther."""
    return tl.histogram(tl.minimum(score - floor, BINS - 1), BINS, mask=here)


@triton.jit
def between(counts, found, budget, floor, SCORING: tl.constexpr, BINS: tl.constexpr):
    """Scores that the threshold lies between, from the counts of all candidates.

    It is the last score that as many candidates reach as the budget has: enough reach the first
    of the two, too few the second, and these are counted.
    """
    bin = tl.arange(0, BINS)
    reached = found - tl.cumsum(counts, axis=0) + counts
    last = tl.max(tl.where(reached >= budget, bin, 0), axis=0)
    high = tl.where(last == BINS - 1, SCORING.forced + 1, floor + last + 1)
    return floor + last, high, tl.sum(tl.where(bin > last, counts, 0), axis=0)


@triton.jit
def third(low, high):
    """Step from ``low`` to two scores that part what is below ``high`` in three."""
    return (high - low + 2) // 3


@triton.jit
def narrow(low, high, above, step, reached_one, reached_two, budget):
    """`between`, narrower: how many reach ``low + step`` and ``low + 2 * step`` is known."""
    one = low + step
    two = low + 2 * step
    if reached_two >= budget:
        low = two
    elif reached_one >= budget:
        low = one
        if two < high:
            high = two
            above = reached_two
    else:
        high = one
        above = reached_one
    return low, high, above


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
def place_held(
    score,
    its_tile,
    slot,
    here,
    piece,
    out_row,
    threshold,
    ties_kept,
    offset,
    HELD: tl.constexpr,
):
    """Store the slots of a list's best, in position order.

    ``offset`` is of what precedes the list in the row: how many are above the threshold and, from
    16 bits on, how many ties.
    """
    one = (score > threshold).to(tl.int32) + ((score == threshold).to(tl.int32) << 16)
    upto = _sums(one, HELD)
    begin = (piece >> 32).to(tl.int32)
    end = begin + (piece & 0x7FFFFFFF).to(tl.int32)
    before = tl.where(begin > 0, tl.gather(upto, tl.maximum(begin - 1, 0), 0), 0)
    until = tl.where(end > 0, tl.gather(upto, tl.maximum(end - 1, 0), 0), 0)
    kept = until - before
    shift = tl.cumsum(kept, axis=0) - kept - before + offset
    place = upto - one + tl.gather(shift, tl.where(here, its_tile, 0), 0)
    ties = place >> 16
    keep = here & ((score > threshold) | ((score == threshold) & (ties < ties_kept)))
    tl.store(out_row + (place & 0xFFFF) + tl.minimum(ties, ties_kept), slot, mask=keep)


@triton.jit
def take_held(
    entries_row,
    tiles_row,
    out_row,
    found,
    used,
    budget,
    floor,
    SCORING: tl.constexpr,
    BINS: tl.constexpr,
    HELD: tl.constexpr,
    TILES: tl.constexpr,
):
    """Take the best of a row's list, which is read once: of at most HELD candidates, below 2**15,
    in at most TILES tiles. See `take_listed` for the sums; here 16 bits hold a count of both.
    """
    here, score, its_tile, slot = load_entries(entries_row, tl.arange(0, HELD), found, SCORING)
    tile = tl.arange(0, TILES)
    piece = tl.load(tiles_row + tile, mask=tile < used, other=0)
    counts = count_excess(score, floor, here, BINS)
    threshold, high, above = between(counts, found, budget, floor, SCORING, BINS)
    while high - threshold > 1:
        step = third(threshold, high)
        reached = (score >= threshold + step).to(tl.int32)
        reached += (score >= threshold + 2 * step).to(tl.int32) << 16
        both = tl.sum(reached, axis=0)
        reached_one, reached_two = both & 0xFFFF, both >> 16
        threshold, high, above = narrow(
            threshold, high, above, step, reached_one, reached_two, budget
        )

    place_held(score, its_tile, slot, here, piece, out_row, threshold, budget - above, 0, HELD)
