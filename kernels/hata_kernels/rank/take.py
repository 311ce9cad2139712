"""Third launch of the ranking: the threshold of every row, and its slots in position order."""

from __future__ import annotations

import triton
import triton.language as tl

from ..chain import start_next, wait_for_last
from .rescored import take_rescored
from .tokens import bin_place

WARPS = 16
# Lists of at most so many candidates are held in registers, of the smallest size that holds them.
HELD = (2048, 4096, 8192)
# Tiles that a program takes in at a time, at most.
TILES = 1024
# Tokens that are scored at a time where a list does not serve.
BLOCK = 512


def chunk(k_max: int) -> int:
    """Candidates that a program takes in at a time of a list that it cannot hold."""
    return min(4096, max(1024, triton.next_power_of_2(4 * k_max)))


@triton.jit
def _from_counts(counts_row, found, budget, UNIT: tl.constexpr, BIN_BITS: tl.constexpr):
    """Largest multiple of UNIT that as many candidates reach as the budget has."""
    bin = tl.arange(0, 1 << BIN_BITS)
    counts = tl.load(counts_row + bin_place(bin, BIN_BITS))
    # It falls as the score grows: the threshold is the last score that enough candidates reach.
    at_least = found - tl.cumsum(counts, axis=0) + counts
    return tl.max(tl.where(at_least >= budget, bin, 0), axis=0) * UNIT


@triton.jit
def _unpack(entry, SCORE_BITS: tl.constexpr):
    """Score, tile and slot of candidates: see `RankBuffers.entries`. -1 has the score -1."""
    high = (entry >> 32).to(tl.int32)
    tile = high & ((1 << (31 - SCORE_BITS)) - 1)
    return high >> (31 - SCORE_BITS), tile, entry.to(tl.int32)


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
def _take_held(
    counts_row,
    entries_row,
    tiles_row,
    out_row,
    found,
    used,
    budget,
    TILE: tl.constexpr,
    SCORE_BITS: tl.constexpr,
    BIN_BITS: tl.constexpr,
    HELD: tl.constexpr,
    TILES: tl.constexpr,
):
    """Take the best of a row's list, which is read once: of at most HELD candidates, below 2**15,
    in at most TILES tiles. See `_take_listed` for the sums; here 16 bits hold a count of both.
    """
    index = tl.arange(0, HELD)
    here = index < found
    entry = tl.load(entries_row + index, mask=here, other=-1)
    tile = tl.arange(0, TILES)
    piece = tl.load(tiles_row + tile, mask=tile < used, other=0)
    score, its_tile, slot = _unpack(entry, SCORE_BITS)
    threshold = _from_counts(counts_row, found, budget, 1 << (SCORE_BITS - BIN_BITS), BIN_BITS)
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


@triton.jit
def _take_listed(
    counts_row,
    entries_row,
    tiles_row,
    before_row,
    shift_row,
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
    threshold = _from_counts(counts_row, found, budget, 1 << (SCORE_BITS - BIN_BITS), BIN_BITS)
    for bit in tl.static_range(SCORE_BITS - BIN_BITS):
        higher = threshold + (1 << (SCORE_BITS - BIN_BITS - 1 - bit))
        reached = tl.zeros((CHUNK,), dtype=tl.int32)
        for first in range(0, found, CHUNK):
            here = first + index < found
            entry = tl.load(entries_row + first + index, mask=here, other=-1)
            reached += (_unpack(entry, SCORE_BITS)[0] >= higher).to(tl.int32)
        threshold = tl.where(tl.sum(reached, axis=0) >= budget, higher, threshold)

    INT: tl.constexpr = tl.int32 if FIELD < 32 else tl.int64
    passed = tl.full((), 0, dtype=INT)
    for first in range(0, found, CHUNK):
        here = first + index < found
        entry = tl.load(entries_row + first + index, mask=here, other=-1)
        score = _unpack(entry, SCORE_BITS)[0]
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
        score, its_tile, slot = _unpack(entry, SCORE_BITS)
        candidate = here & (score >= threshold)
        shift = tl.load(shift_row + its_tile, mask=candidate, other=0)
        place = tl.load(before_row + first + index, mask=candidate, other=0) + shift
        above = (place & ((1 << FIELD) - 1)).to(tl.int32)
        ties = (place >> FIELD).to(tl.int32)
        keep = candidate & ((score > threshold) | (ties < ties_kept))
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
    found_batch,
    found_head,
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
    HELD: tl.constexpr,
    SIZES: tl.constexpr,
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
    row = tl.program_id(0).to(tl.int64)
    batch = row // HEADS
    length = tl.load(seq_lens_ptr + batch).to(tl.int32)
    budget = tl.minimum(tl.load(budgets_ptr + batch), tl.minimum(length, k_max))
    wait_for_last(PDL)
    start_next(PDL)
    found = tl.load(found_ptr + batch * found_batch + row % HEADS * found_head)
    slots_row = token_slots_ptr + batch * token_slots_stride
    out_row = out_ptr + row * k_max
    if length <= budget:
        for first in range(0, length, CHUNK):
            place = first + tl.arange(0, CHUNK)
            slot = tl.load(slots_row + place, mask=place < length, other=0)
            tl.store(out_row + place, slot, mask=place < length)
    elif (found >= budget) & (found <= room):
        counts_row = counts_ptr + row * (1 << BIN_BITS)
        entries_row = entries_ptr + row * room
        tiles_row = tiles_ptr + row * tiles
        used = tl.cdiv(length, TILE)
        lists = (counts_row, entries_row, tiles_row)
        listed = (found > HELD[SIZES - 1]) | (used > TILES)
        for number in tl.static_range(SIZES):
            fits = found <= HELD[number]
            if number > 0:
                fits = fits & (found > HELD[number - 1])
            if fits & (used <= TILES):
                _take_held(
                    *lists,
                    out_row,
                    found,
                    used,
                    budget,
                    TILE,
                    SCORE_BITS,
                    BIN_BITS,
                    HELD[number],
                    TILES,
                )
        if listed:
            _take_listed(
                *lists,
                before_ptr + row * (room + 1),
                shift_ptr + row * tiles,
                out_row,
                found,
                used,
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
