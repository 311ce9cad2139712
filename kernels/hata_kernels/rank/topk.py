"""How the last launch of the ranking takes the best of a row's candidates, in position order.

From a list that registers hold, from the list of one section of a context, or from lists of any
length, which are read again and again.

A list is in the order in which programs of the filter came. So a candidate's place in the result
is the number of kept ones in earlier tiles, and before it in its own: a prefix sum over the list
and one over the tiles in position order give both. They count two things at once, candidates above
the threshold in the lower bits and ties above these.

Where rows are so few that one list is too long, each section of a context has a list of its own: a
program takes so many candidates in a microsecond, and there are fewer programs than
multiprocessors. The filter counts a section's candidates by score, so that a program for every
section finds the row's threshold, and where its own slots go, by itself.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from .filter import load_entries, section_tiles, unpack_entries


class Section(NamedTuple):
    """A section of a row, as `load_section` has read it."""

    entries: tl.tensor  # where its list is
    size: tl.tensor  # candidates of its list
    first_tile: tl.tensor
    tiles: tl.tensor  # of any section but the last
    entry: tl.tensor  # the first candidates
    piece: tl.tensor  # its tiles' pieces of the list
    total: tl.tensor  # counts of the row's candidates
    earlier: tl.tensor  # and of those in sections before


@triton.jit
def fits(size, registers: tl.constexpr, number: tl.constexpr):
    """Whether of these sizes this one is the smallest that holds a list of ``size``."""
    if number == 0:
        return size <= registers[0]
    else:
        return (size <= registers[number]) & (size > registers[number - 1])


@triton.jit
def _count(score, floor, here, BINS: tl.constexpr):
    """How many of ``[N]`` are so far above the floor ``[BINS]``; the last, or farther."""
    return tl.histogram(tl.minimum(score - floor, BINS - 1), BINS, mask=here)


@triton.jit
def _bracket(counts, row, SCORING: tl.constexpr, BINS: tl.constexpr):
    """Scores that the threshold lies between, from the counts of all candidates.

    It is the last score that as many candidates reach as the budget has: enough reach the first
    of the two, too few the second, and these are counted.
    """
    bin = tl.arange(0, BINS)
    reached = row.found - tl.cumsum(counts, axis=0) + counts
    last = tl.max(tl.where(reached >= row.budget, bin, 0), axis=0)
    high = tl.where(last == BINS - 1, SCORING.forced + 1, row.floor + last + 1)
    return row.floor + last, high, tl.sum(tl.where(bin > last, counts, 0), axis=0)


@triton.jit
def _narrow(low, high, above, step, reached_one, reached_two, budget):
    """`_bracket`, narrower: two scores part it in three, and how many reach these is known."""
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
def _write(candidates, piece, out, threshold, ties_kept, offset, SIZE: tl.constexpr):
    """Store the slots of the best of a list, as `load_entries` gives it, in position order.

    ``offset`` is of what precedes the list in the row: how many are above the threshold and, from
    16 bits on, how many ties.
    """
    here, score, tile, slot = candidates
    one = (score > threshold).to(tl.int32) + ((score == threshold).to(tl.int32) << 16)
    upto = _sums(one, SIZE)
    begin = (piece >> 32).to(tl.int32)
    end = begin + (piece & 0x7FFFFFFF).to(tl.int32)
    before = tl.where(begin > 0, tl.gather(upto, tl.maximum(begin - 1, 0), 0), 0)
    until = tl.where(end > 0, tl.gather(upto, tl.maximum(end - 1, 0), 0), 0)
    kept = until - before
    shift = tl.cumsum(kept, axis=0) - kept - before + offset
    place = upto - one + tl.gather(shift, tl.where(here, tile, 0), 0)
    ties = place >> 16
    keep = here & ((score > threshold) | ((score == threshold) & (ties < ties_kept)))
    tl.store(out + (place & 0xFFFF) + tl.minimum(ties, ties_kept), slot, mask=keep)


@triton.jit
def topk_in_registers(row, out, SIZE: tl.constexpr, SCORING: tl.constexpr, SELECTION: tl.constexpr):
    """Take the best of a row's list, which is read once: of at most SIZE candidates, below 2**15,
    in no more tiles than a program takes in at a time.
    """
    candidates = load_entries(row.entries, tl.arange(0, SIZE), row.found, SCORING)
    here, score, _, _ = candidates
    index = tl.arange(0, SELECTION.tiles)
    piece = tl.load(row.tiles + index, mask=index < row.used, other=0)
    counts = _count(score, row.floor, here, SELECTION.bins)
    threshold, high, above = _bracket(counts, row, SCORING, SELECTION.bins)
    while high - threshold > 1:
        step = (high - threshold + 2) // 3
        reached = (score >= threshold + step).to(tl.int32)
        reached += (score >= threshold + 2 * step).to(tl.int32) << 16
        both = tl.sum(reached, axis=0)
        reached_one, reached_two = both & 0xFFFF, both >> 16
        threshold, high, above = _narrow(
            threshold, high, above, step, reached_one, reached_two, row.budget
        )

    ties_kept = row.budget - above
    _write(candidates, piece, out, threshold, ties_kept, 0, SIZE)


@triton.jit
def load_section(
    row, scratch, scalars, section, size, TILING: tl.constexpr, SELECTION: tl.constexpr
):
    """All that `topk_of_section` reads, before it is known whether it serves: one wait, not four.

    Of a row that has no lists it is what another call left, or nothing that was written.
    """
    SECTIONS: tl.constexpr = TILING.sections
    BINS: tl.constexpr = TILING.bins
    tiles = section_tiles(row.used, TILING)
    first_tile = section * tiles
    entries = row.entries + section * scalars.room
    counts_row = scratch.counts + row.number * (SECTIONS * BINS)
    here = tl.minimum(tiles, row.used - first_tile)
    index = tl.arange(0, SELECTION.registers[0])
    entry = tl.load(entries + index, mask=index < scalars.room, other=-1)
    tile = tl.arange(0, SELECTION.tiles)
    piece = tl.load(row.tiles + first_tile + tile, mask=tile < here, other=0)
    total = tl.zeros((BINS,), tl.int32)
    earlier = tl.zeros((BINS,), tl.int32)
    for number in tl.static_range(SECTIONS):
        counts = tl.load(counts_row + number * BINS + tl.arange(0, BINS))
        total += counts
        earlier += tl.where(number < section, counts, 0)
    return Section(entries, size, first_tile, tiles, entry, piece, total, earlier)


@triton.jit
def topk_of_section(
    row,
    section,
    longest,
    out,
    SCORING: tl.constexpr,
    TILING: tl.constexpr,
    SELECTION: tl.constexpr,
):
    """Take the best of one section's list; return whether the row's lists serve in this way.

    They do not where the threshold is too far above the floor to be counted by itself, registers do
    not hold the longest list, or a section has more tiles than a program takes in at a time; nor
    where a candidate was counted more than once (`Tiling.of`).
    """
    threshold, high, above = _bracket(section.total, row, SCORING, TILING.bins)
    SIZES: tl.constexpr = SELECTION.registers
    serves = (high - threshold == 1) & (longest <= SIZES[len(SIZES) - 1])
    serves = serves & (section.tiles <= SELECTION.tiles)
    serves = serves & (tl.sum(section.total, axis=0) == row.found)
    if serves & (section.size > 0):
        ties_kept = row.budget - above
        excess = tl.arange(0, TILING.bins) + row.floor - threshold
        precede = tl.where(excess > 0, 1, tl.where(excess == 0, 1 << 16, 0))
        offset = tl.sum(precede * section.earlier, axis=0)
        for i in tl.static_range(len(SIZES)):
            if fits(section.size, SIZES, i):
                here = tl.arange(0, SIZES[i]) < section.size
                entry = section.entry
                if i > 0:
                    entry = tl.load(section.entries + tl.arange(0, SIZES[i]), mask=here, other=-1)
                score, tile, slot = unpack_entries(tl.where(here, entry, -1), SCORING)
                candidates = (here, score, tile - section.first_tile, slot)
                piece = section.piece
                _write(candidates, piece, out, threshold, ties_kept, offset, SIZES[i])
    return serves


@triton.jit
def topk_in_memory(
    row, scratch, scalars, out, SCORING: tl.constexpr, TILING: tl.constexpr, SELECTION: tl.constexpr
):
    """Take the best of a row's lists, of which there is one for every section of its context.

    The prefix sums go to memory; their lower FIELD bits count candidates above the threshold.
    """
    CHUNK: tl.constexpr = SELECTION.chunk
    FIELD: tl.constexpr = SELECTION.field
    BINS: tl.constexpr = SELECTION.bins
    before_row = scratch.before + row.number * (TILING.sections * (scalars.room + 1))
    shift_row = scratch.shift + row.number * scalars.tiles
    index = tl.arange(0, CHUNK)
    counts = tl.zeros((BINS,), dtype=tl.int32)
    for section in range(0, TILING.sections):
        size = tl.load(row.sizes + section * tl.num_programs(0))
        entries = row.entries + section * scalars.room
        for first in range(0, size, CHUNK):
            here, score, _, _ = load_entries(entries, first + index, size, SCORING)
            counts += _count(score, row.floor, here, BINS)
    threshold, high, above = _bracket(counts, row, SCORING, BINS)
    while high - threshold > 1:
        step = (high - threshold + 2) // 3
        reached = tl.zeros((CHUNK,), dtype=tl.int64)
        for section in range(0, TILING.sections):
            size = tl.load(row.sizes + section * tl.num_programs(0))
            entries = row.entries + section * scalars.room
            for first in range(0, size, CHUNK):
                _, score, _, _ = load_entries(entries, first + index, size, SCORING)
                reached += (score >= threshold + step).to(tl.int64)
                reached += (score >= threshold + 2 * step).to(tl.int64) << 32
        both = tl.sum(reached, axis=0)
        reached_one = (both & 0xFFFFFFFF).to(tl.int32)
        reached_two = (both >> 32).to(tl.int32)
        threshold, high, above = _narrow(
            threshold, high, above, step, reached_one, reached_two, row.budget
        )

    INT: tl.constexpr = tl.int32 if FIELD < 32 else tl.int64
    ties_kept = row.budget - above
    tiles = section_tiles(row.used, TILING)
    tile_index = tl.arange(0, SELECTION.tiles)
    precede = tl.full((), 0, dtype=INT)  # of the row, in sections before
    for section in range(0, TILING.sections):
        size = tl.load(row.sizes + section * tl.num_programs(0))
        entries = row.entries + section * scalars.room
        before_list = before_row + section * (scalars.room + 1)
        passed = tl.full((), 0, dtype=INT)
        for first in range(0, size, CHUNK):
            here, score, _, _ = load_entries(entries, first + index, size, SCORING)
            one = (score > threshold).to(INT) + ((score == threshold).to(INT) << FIELD)
            tl.store(before_list + first + index, passed + tl.cumsum(one, axis=0) - one, mask=here)
            passed += tl.sum(one, axis=0)
        tl.store(before_list + size, passed)
        tl.debug_barrier()  # the other threads of this program read them

        begun = section * tiles
        end_tile = tl.minimum(begun + tiles, row.used)
        for first in range(begun, end_tile, SELECTION.tiles):
            tile = first + tile_index
            in_use = tile < end_tile
            piece = tl.load(row.tiles + tile, mask=in_use, other=0)
            begin = piece >> 32
            before = tl.load(before_list + begin, mask=in_use, other=0)
            end = begin + (piece & 0x7FFFFFFF)
            kept = tl.load(before_list + end, mask=in_use, other=0) - before
            place = precede + tl.cumsum(kept, axis=0) - kept
            tl.store(shift_row + tile, place - before, mask=in_use)
            precede += tl.sum(kept, axis=0)
        # More ties than are kept make no difference, but those of all sections would not fit in
        # FIELD bits. Those of two do, of which they take the sign: only a mask reads them right.
        precede_ties = tl.minimum((precede >> FIELD) & ((1 << FIELD) - 1), ties_kept)
        precede = (precede & ((1 << FIELD) - 1)) | (precede_ties << FIELD)
        tl.debug_barrier()

        for first in range(0, size, CHUNK):
            here, score, tile, slot = load_entries(entries, first + index, size, SCORING)
            candidate = here & (score >= threshold)
            shift = tl.load(shift_row + tile, mask=candidate, other=0)
            place = tl.load(before_list + first + index, mask=candidate, other=0) + shift
            better = (place & ((1 << FIELD) - 1)).to(tl.int32)
            ties = ((place >> FIELD) & ((1 << FIELD) - 1)).to(tl.int32)
            keep = candidate & ((score > threshold) | (ties < ties_kept))
            tl.store(out + better + tl.minimum(ties, ties_kept), slot, mask=keep)
