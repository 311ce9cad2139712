"""Third launch of the ranking: the threshold of every row, and its slots in position order."""

from __future__ import annotations

import triton
import triton.language as tl

from ..chain import start_next, wait_for_last
from .rescored import take_rescored

WARPS = 8
# Tiles that a program takes in at a time, at most.
TILES = 1024
# Tokens that are scored at a time where a list does not serve.
BLOCK = 512


def chunk(k_max: int) -> int:
    """Candidates that a program takes in at a time; a usual list has two budgets of them."""
    return min(4096, max(1024, triton.next_power_of_2(4 * k_max)))


@triton.jit
def _take_listed(
    counts_row,
    entries_row,
    tiles_row,
    before_row,
    shift_row,
    slots_row,
    out_row,
    found,
    used,
    budget,
    TILE: tl.constexpr,
    SCORE_BITS: tl.constexpr,
    BIN_BITS: tl.constexpr,
    CHUNK: tl.constexpr,
    TILES: tl.constexpr,
    FIELD: tl.constexpr,
):
    """Take the best of a row's list.

    Pieces of the list lie in any order, so a candidate's place in the result is the number of
    kept ones in the pieces of earlier tiles, and before it in its own. Two prefix sums, over the
    list and over the tiles in position order, give both. Each holds two numbers: of candidates
    above the threshold in the lower FIELD bits, of ties above these.
    """
    index = tl.arange(0, CHUNK)
    bin = tl.arange(0, 1 << BIN_BITS)
    counts = tl.load(counts_row + bin)
    # It falls as the score grows: the threshold is the last score that enough candidates reach.
    at_least = found - tl.cumsum(counts, axis=0) + counts
    threshold = tl.max(tl.where(at_least >= budget, bin, 0), axis=0) << (SCORE_BITS - BIN_BITS)
    for bit in tl.static_range(SCORE_BITS - BIN_BITS):
        higher = threshold + (1 << (SCORE_BITS - BIN_BITS - 1 - bit))
        reached = tl.zeros((CHUNK,), dtype=tl.int32)
        for first in range(0, found, CHUNK):
            here = first + index < found
            entry = tl.load(entries_row + first + index, mask=here, other=-1)
            reached += ((entry >> 32).to(tl.int32) >= higher).to(tl.int32)
        threshold = tl.where(tl.sum(reached, axis=0) >= budget, higher, threshold)

    INT: tl.constexpr = tl.int32 if FIELD < 32 else tl.int64
    passed = tl.full((), 0, dtype=INT)
    for first in range(0, found, CHUNK):
        here = first + index < found
        entry = tl.load(entries_row + first + index, mask=here, other=-1)
        score = (entry >> 32).to(tl.int32)
        one = (score > threshold).to(INT) + ((score == threshold).to(INT) << FIELD)
        tl.store(before_row + first + index, passed + tl.cumsum(one, axis=0) - one, mask=here)
        passed += tl.sum(one, axis=0)
    tl.store(before_row + found, passed)
    ties_kept = budget - (passed & ((1 << FIELD) - 1)).to(tl.int32)
    tl.debug_barrier()  # the other threads of this program read them

    passed = tl.full((), 0, dtype=INT)
    tile_index = tl.arange(0, TILES)
    for first in range(0, used, TILES):
        tile = first + tile_index
        in_use = tile < used
        piece = tl.load(tiles_row + tile, mask=in_use, other=0)
        begin = piece >> 32
        before = tl.load(before_row + begin, mask=in_use, other=0)
        end = begin + (piece & 0x7FFFFFFF)
        kept = tl.load(before_row + end, mask=in_use, other=0) - before
        place = passed + tl.cumsum(kept, axis=0) - kept
        tl.store(shift_row + tile, place - before, mask=in_use)
        passed += tl.sum(kept, axis=0)
    tl.debug_barrier()

    for first in range(0, found, CHUNK):
        here = first + index < found
        entry = tl.load(entries_row + first + index, mask=here, other=-1)
        score = (entry >> 32).to(tl.int32)
        candidate = here & (score >= threshold)
        token = (entry & 0x7FFFFFFF).to(tl.int32)
        shift = tl.load(shift_row + token // TILE, mask=candidate, other=0)
        place = tl.load(before_row + first + index, mask=candidate, other=0) + shift
        above = (place & ((1 << FIELD) - 1)).to(tl.int32)
        ties = (place >> FIELD).to(tl.int32)
        keep = candidate & ((score > threshold) | (ties < ties_kept))
        slot = tl.load(slots_row + token, mask=keep, other=0)
        tl.store(out_row + above + tl.minimum(ties, ties_kept), slot, mask=keep)


@triton.jit
def take_kernel(
    q_codes_ptr,
    codes_ptr,
    scales_ptr,
    token_slots_ptr,
    seq_lens_ptr,
    budgets_ptr,
    floors_ptr,
    found_ptr,
    counts_ptr,
    entries_ptr,
    tiles_ptr,
    before_ptr,
    shift_ptr,
    out_ptr,
    token_slots_stride,
    tiles,
    room,
    sink,
    recent,
    k_max,
    HEADS: tl.constexpr,
    WEIGHTS: tl.constexpr,
    PLANES: tl.constexpr,
    WORDS: tl.constexpr,
    WORDS_POW2: tl.constexpr,
    DOUBLING: tl.constexpr,
    EQUAL: tl.constexpr,
    FULL: tl.constexpr,
    FORCED: tl.constexpr,
    MOST: tl.constexpr,
    SHIFT: tl.constexpr,
    WIDE: tl.constexpr,
    PTX: tl.constexpr,
    SCORE_BITS: tl.constexpr,
    BIN_BITS: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK: tl.constexpr,
    LANES: tl.constexpr,
    FIELD: tl.constexpr,
    PDL: tl.constexpr,
):
    """Slots of one row.

    All of them where the budget covers the context; and where the list has too few or too many,
    the row's tokens are scored again.
    """
    wait_for_last(PDL)
    start_next(PDL)
    row = tl.program_id(0).to(tl.int64)
    batch = row // HEADS
    length = tl.load(seq_lens_ptr + batch).to(tl.int32)
    budget = tl.minimum(tl.load(budgets_ptr + batch), tl.minimum(length, k_max))
    found = tl.load(found_ptr + row)
    slots_row = token_slots_ptr + batch * token_slots_stride
    out_row = out_ptr + row * k_max
    if length <= budget:
        for first in range(0, length, CHUNK):
            place = first + tl.arange(0, CHUNK)
            slot = tl.load(slots_row + place, mask=place < length, other=0)
            tl.store(out_row + place, slot, mask=place < length)
    elif (found >= budget) & (found <= room):
        _take_listed(
            counts_ptr + row * (1 << BIN_BITS),
            entries_ptr + row * room,
            tiles_ptr + row * tiles,
            before_ptr + row * (room + 1),
            shift_ptr + row * tiles,
            slots_row,
            out_row,
            found,
            tl.cdiv(length, TILE),
            budget,
            TILE,
            SCORE_BITS,
            BIN_BITS,
            CHUNK,
            TILES,
            FIELD,
        )
    else:
        take_rescored(
            q_codes_ptr,
            codes_ptr,
            scales_ptr,
            slots_row,
            out_row,
            row,
            length,
            budget,
            sink,
            recent,
            HEADS,
            WEIGHTS,
            PLANES,
            WORDS,
            WORDS_POW2,
            DOUBLING,
            EQUAL,
            FULL,
            FORCED,
            MOST,
            SHIFT,
            WIDE,
            PTX,
            SCORE_BITS,
            BLOCK,
            LANES,
        )
    for first in range(0, k_max, CHUNK):
        place = first + tl.arange(0, CHUNK)
        tl.store(out_row + place, -1, mask=(place >= budget) & (place < k_max))
