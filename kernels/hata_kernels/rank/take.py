"""Last launch of the ranking: the threshold of every row, and its slots in position order."""

from __future__ import annotations

import triton
import triton.language as tl

from ..chain import start_next, wait_for_last
from .held import holds, take_held
from .listed import take_listed
from .rescored import take_rescored
from .sections import load_section, load_sizes, section_tiles, take_section

WARPS = 16
# Lists of at most so many candidates are held in registers, of the smallest size that holds them;
# and lists of sections, which have fewer.
HELD, HELD_OF_SECTION = (2048, 4096, 8192), (1024, 4096)
# Scores above the floor by which candidates of a list are counted; a threshold beyond takes more
# rounds.
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
    counts_ptr,
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
    SECTIONS: tl.constexpr,
    LEAST: tl.constexpr,
    COUNTED: tl.constexpr,
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
    """Slots of one row, or of a section of it.

    All of them where the budget covers the context; and where a list has too few or too many, the
    row's tokens are scored again. Of a row's programs the first does both.
    """
    row = tl.program_id(0).to(tl.int64)
    batch = row // SCORING.heads
    length = tl.load(seq_lens_ptr + batch).to(tl.int32)
    budget = tl.minimum(tl.load(budgets_ptr + batch), tl.minimum(length, k_max))
    wait_for_last(PDL)
    start_next(PDL)
    section = tl.program_id(1)
    is_first = section == 0
    used = tl.cdiv(length, TILE)
    entries_row = entries_ptr + row * (SECTIONS * room)
    tiles_row = tiles_ptr + row * tiles
    floor = tl.load(floors_ptr + row)
    found_row = found_ptr + batch * found_batch + row % SCORING.heads * found_head
    found_step = tl.num_programs(0)
    found, longest, size = load_sizes(found_row, found_step, section, SECTIONS)
    if SECTIONS > 1:
        its_tiles = section_tiles(used, TILE, SECTIONS, LEAST)
        first_tile = section * its_tiles
        entries_list = entries_row + section * room
        total, earlier, entry, piece = load_section(
            entries_list,
            counts_ptr + row * (SECTIONS * COUNTED),
            tiles_row,
            room,
            section,
            first_tile,
            tl.minimum(its_tiles, used - first_tile),
            SECTIONS,
            COUNTED,
            HELD[0],
            TILES,
        )
    slots_row = token_slots_ptr + batch * token_slots_stride
    out_row = out_ptr + row * k_max
    if length <= budget:
        if is_first:
            for first in range(0, length, CHUNK):
                place = first + tl.arange(0, CHUNK)
                slot = tl.load(slots_row + place, mask=place < length, other=0)
                tl.store(out_row + place, slot, mask=place < length)
    elif (found >= budget) & (longest <= room):
        if SECTIONS > 1:
            serves = take_section(
                total,
                earlier,
                entry,
                piece,
                entries_list,
                out_row,
                size,
                longest,
                found,
                its_tiles,
                first_tile,
                budget,
                floor,
                SCORING,
                COUNTED,
                HELD,
                SIZES,
                TILES,
            )
            listed = not serves
        else:
            listed = (found > HELD[SIZES - 1]) | (used > TILES)
            for number in tl.static_range(SIZES):
                if holds(found, HELD, number) & (used <= TILES):
                    take_held(
                        entries_row,
                        tiles_row,
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
        if listed & is_first:
            take_listed(
                entries_row,
                tiles_row,
                before_ptr + row * (SECTIONS * (room + 1)),
                shift_ptr + row * tiles,
                out_row,
                found_row,
                found_step,
                room,
                found,
                used,
                budget,
                floor,
                SCORING,
                SECTIONS,
                LEAST,
                TILE,
                BINS,
                CHUNK,
                TILES,
                FIELD,
            )
    elif is_first:
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
    if is_first:
        for first in range(0, k_max, CHUNK):
            place = first + tl.arange(0, CHUNK)
            tl.store(out_row + place, -1, mask=(place >= budget) & (place < k_max))
