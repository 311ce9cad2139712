"""What the last launch of the ranking does for a row whose lists are too long to be held."""

from __future__ import annotations

import triton
import triton.language as tl

from .held import between, count_excess, narrow, third
from .sections import section_tiles
from .tokens import load_entries


@triton.jit
def take_listed(
    entries_row,
    tiles_row,
    before_row,
    shift_row,
    out_row,
    found_row,
    found_step,
    room,
    found,
    used,
    budget,
    floor,
    SCORING: tl.constexpr,
    SECTIONS: tl.constexpr,
    LEAST: tl.constexpr,
    TILE: tl.constexpr,
    BINS: tl.constexpr,
    CHUNK: tl.constexpr,
    TILES: tl.constexpr,
    FIELD: tl.constexpr,
):
    """Take the best of a row's lists, of which there is one for every section of its context.

    Pieces of the list lie in any order, so a candidate's place in the result is the number of
    kept ones in the pieces of earlier tiles, and before it in its own. Two prefix sums, over the
    list and over the tiles in position order, give both. Each holds two numbers: of candidates
    above the threshold in the lower FIELD bits, of ties above these.
    """
    index = tl.arange(0, CHUNK)
    counts = tl.zeros((BINS,), dtype=tl.int32)
    for section in range(0, SECTIONS):
        size = tl.load(found_row + section * found_step)
        entries_list = entries_row + section * room
        for first in range(0, size, CHUNK):
            here, score, _, _ = load_entries(entries_list, first + index, size, SCORING)
            counts += count_excess(score, floor, here, BINS)
    threshold, high, above = between(counts, found, budget, floor, SCORING, BINS)
    while high - threshold > 1:
        step = third(threshold, high)
        reached = tl.zeros((CHUNK,), dtype=tl.int64)
        for section in range(0, SECTIONS):
            size = tl.load(found_row + section * found_step)
            entries_list = entries_row + section * room
            for first in range(0, size, CHUNK):
                _, score, _, _ = load_entries(entries_list, first + index, size, SCORING)
                reached += (score >= threshold + step).to(tl.int64)
                reached += (score >= threshold + 2 * step).to(tl.int64) << 32
        both = tl.sum(reached, axis=0)
        reached_one = (both & 0xFFFFFFFF).to(tl.int32)
        reached_two = (both >> 32).to(tl.int32)
        threshold, high, above = narrow(
            threshold, high, above, step, reached_one, reached_two, budget
        )

    INT: tl.constexpr = tl.int32 if FIELD < 32 else tl.int64
    ties_kept = budget - above
    its_tiles = section_tiles(used, TILE, SECTIONS, LEAST)
    tile_index = tl.arange(0, TILES)
    precede = tl.full((), 0, dtype=INT)  # of the row, in sections before
    for section in range(0, SECTIONS):
        size = tl.load(found_row + section * found_step)
        entries_list = entries_row + section * room
        before_list = before_row + section * (room + 1)
        passed = tl.full((), 0, dtype=INT)
        for first in range(0, size, CHUNK):
            here, score, _, _ = load_entries(entries_list, first + index, size, SCORING)
            one = (score > threshold).to(INT) + ((score == threshold).to(INT) << FIELD)
            tl.store(before_list + first + index, passed + tl.cumsum(one, axis=0) - one, mask=here)
            passed += tl.sum(one, axis=0)
        tl.store(before_list + size, passed)
        tl.debug_barrier()  # the other threads of this program read them

        begun = section * its_tiles
        end_tile = tl.minimum(begun + its_tiles, used)
        for first in range(begun, end_tile, TILES):
            tile = first + tile_index
            in_use = tile < end_tile
            piece = tl.load(tiles_row + tile, mask=in_use, other=0)
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
            here, score, its_tile, slot = load_entries(entries_list, first + index, size, SCORING)
            candidate = here & (score >= threshold)
            shift = tl.load(shift_row + its_tile, mask=candidate, other=0)
            place = tl.load(before_list + first + index, mask=candidate, other=0) + shift
            better = (place & ((1 << FIELD) - 1)).to(tl.int32)
            ties = ((place >> FIELD) & ((1 << FIELD) - 1)).to(tl.int32)
            keep = candidate & ((score > threshold) | (ties < ties_kept))
            tl.store(out_row + better + tl.minimum(ties, ties_kept), slot, mask=keep)
