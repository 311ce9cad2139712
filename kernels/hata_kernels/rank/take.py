"""Third launch of the ranking: the threshold of every row, and its slots in position order."""

from __future__ import annotations

import triton
import triton.language as tl

from ..chain import start_next, wait_for_last
from .tokens import load_codes, score_codes

WARPS = 8
# Tiles that a program takes in at a time, at most.
TILES = 1024
# Tokens that are scored at a time where a list does not serve.
BLOCK = 512


def chunk(k_max: int) -> int:
    """Candidates that a program takes in at a time; a usual list has two budgets of them."""
    return min(4096, max(1024, triton.next_power_of_2(4 * k_max)))


@triton.jit
def _digit(counts, budget):
    """Which of three thresholds, counted in 20 bits each, the budget reaches: 0 to 3."""
    digit = ((counts & 0xFFFFF) >= budget).to(tl.int32)
    digit += (((counts >> 20) & 0xFFFFF) >= budget).to(tl.int32)
    return digit + ((counts >> 40) >= budget).to(tl.int32)


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
        index = (
            tl.arange(0, LANES)[:, None] * (BLOCK // LANES) + tl.arange(0, BLOCK // LANES)[None, :]
        )
        head = (row % HEADS).to(tl.int32) + tl.zeros((LANES,), tl.int32)
        threshold = 0
        above = 0
        ties_kept = 0
        ties = 0
        done = 0
        STEPS: tl.constexpr = (SCORE_BITS + 1) // 2
        unit = 1 << (2 * STEPS - 2)
        # The threshold two bits at a time, how many are above it, then the slots.
        for step in range(0, STEPS + 2):
            reached = tl.zeros((LANES, BLOCK // LANES), dtype=tl.int64)
            for first in range(0, length, BLOCK):
                token = first + index
                valid = token < length
                slot = tl.load(slots_row + token, mask=valid, other=0)
                keys = load_codes(codes_ptr, slot, head, HEADS, WORDS, WORDS_POW2)
                score = score_codes(
                    keys,
                    q_codes_ptr,
                    scales_ptr,
                    batch,
                    head,
                    slot,
                    token,
                    length,
                    sink,
                    recent,
                    (first < sink) | (first + BLOCK > length - recent),
                    BLOCK // LANES,
                    LANES,
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
                )
                score = tl.where(valid, score, -1)
                if step <= STEPS:
                    # In the last of these steps the unit is 0 and all three are at least 1.
                    one = tl.maximum(unit, 1)
                    reached += (score >= threshold + one).to(tl.int64)
                    reached += (score >= threshold + 2 * one).to(tl.int64) << 20
                    reached += (score >= threshold + 3 * one).to(tl.int64) << 40
                else:
                    is_above = (score > threshold).to(tl.int32)
                    is_tie = (score == threshold).to(tl.int32)
                    # Tokens in position order.
                    flat_tie = tl.reshape(is_tie, (BLOCK,))
                    tie = ties + tl.cumsum(flat_tie, axis=0) - flat_tie
                    kept_tie = (flat_tie == 1) & (tie < ties_kept)
                    keep = (tl.reshape(is_above, (BLOCK,)) == 1) | kept_tie
                    kept = keep.to(tl.int32)
                    to = done + tl.cumsum(kept, axis=0) - kept
                    tl.store(out_row + to, tl.reshape(slot, (BLOCK,)), mask=keep)
                    done += tl.sum(kept, axis=0)
                    ties += tl.sum(flat_tie, axis=0)
            counts = tl.sum(tl.reshape(reached, (BLOCK,)), axis=0)
            if step < STEPS:
                threshold += _digit(counts, budget) * unit
                unit = unit >> 2
            if step == STEPS:
                above = (counts & 0xFFFFF).to(tl.int32)
                ties_kept = budget - above
    for first in range(0, k_max, CHUNK):
        place = first + tl.arange(0, CHUNK)
        tl.store(out_row + place, -1, mask=(place >= budget) & (place < k_max))
