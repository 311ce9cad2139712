"""Last launch of the ranking: the threshold of every row, and its slots in position order."""

from __future__ import annotations

import triton
import triton.language as tl

from ..chain import start_next, wait_for_last
from .held import take_held
from .listed import take_listed
from .rescored import take_rescored

WARPS = 16
# Lists of at most so many candidates are held in registers, of the smallest size that holds them.
HELD = (2048, 4096, 8192)
# Scores above the floor by which candidates are counted; a threshold beyond takes more rounds.
BINS = 32
# Tiles that a program takes in at a time, at most.
TILES = 4096
# Tokens that are scored at a time where a list does not serve.
BLOCK = 512


def chunk(k_max: int) -> int:
    """Candidates that a program takes in at a time of a list that it cannot hold."""
    return min(4096, max(1024, triton.next_power_of_2(4 * k_max)))


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
    SCORING: tl.constexpr,
    BINS: tl.constexpr,
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
    batch = row // SCORING.heads
    length = tl.load(seq_lens_ptr + batch).to(tl.int32)
    budget = tl.minimum(tl.load(budgets_ptr + batch), tl.minimum(length, k_max))
    wait_for_last(PDL)
    start_next(PDL)
    found = tl.load(found_ptr + batch * found_batch + row % SCORING.heads * found_head)
    slots_row = token_slots_ptr + batch * token_slots_stride
    out_row = out_ptr + row * k_max
    if length <= budget:
        for first in range(0, length, CHUNK):
            place = first + tl.arange(0, CHUNK)
            slot = tl.load(slots_row + place, mask=place < length, other=0)
            tl.store(out_row + place, slot, mask=place < length)
    elif (found >= budget) & (found <= room):
        floor = tl.load(floors_ptr + row)
        entries_row = entries_ptr + row * room
        tiles_row = tiles_ptr + row * tiles
        used = tl.cdiv(length, TILE)
        lists = (entries_row, tiles_row)
        listed = (found > HELD[SIZES - 1]) | (used > TILES)
        for number in tl.static_range(SIZES):
            fits = found <= HELD[number]
            if number > 0:
                fits = fits & (found > HELD[number - 1])
            if fits & (used <= TILES):
                take_held(
                    *lists,
                    out_row,
                    found,
                    used,
                    budget,
                    floor,
                    SCORING,
                    BINS,
                    HELD[number],
                    TILES,
                )
        if listed:
            take_listed(
                *lists,
                before_ptr + row * (room + 1),
                shift_ptr + row * tiles,
                out_row,
                found,
                used,
                budget,
                floor,
                SCORING,
                BINS,
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
            SCORING,
            BLOCK,
            LANES,
        )
    for first in range(0, k_max, CHUNK):
        place = first + tl.arange(0, CHUNK)
        tl.store(out_row + place, -1, mask=(place >= budget) & (place < k_max))
