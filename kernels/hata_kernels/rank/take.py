"""Last launch of the ranking: the threshold of every row, and its slots in position order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import triton
import triton.language as tl

from ..bits import power_of_2
from ..chain import start_next, wait_for_last
from .buffers import Tiling
from .distance import common_bucket
from .score import load_codes, load_lanes, score_codes
from .topk import (
    fits,
    load_section,
    topk_in_memory,
    topk_in_registers,
    topk_of_section,
)

WARPS = 16
# Lists of at most so many candidates are held in registers, of the smallest size that holds them;
# and lists of sections, which have fewer.
IN_REGISTERS, SECTION_IN_REGISTERS = (2048, 4096, 8192), (1024, 4096)
# Scores above the floor by which candidates of a list are counted; a threshold beyond takes more
# rounds.
BINS = 32
# Tiles that a program takes in at a time, at most.
TILES = 4096
# Tokens that are scored at a time where a list does not serve.
BLOCK = 512


def chunk(k_max: int) -> int:
    """Candidates that a program takes in at a time of a list that registers cannot hold."""
    return min(4096, max(1024, power_of_2(4 * k_max)))


@dataclass(frozen=True)
class Selection:
    """A constant of `take_kernel`: the constants above, as they are for a call.

    Attributes
    ----------
    registers : tuple of int
        Sizes of lists that are held in registers.
    bins, tiles, chunk, block : int
    lanes : int
        Threads of a program.
    field : int
        `RankSizes.field`.
    """

    registers: tuple[int, ...]
    bins: int
    tiles: int
    chunk: int
    block: int
    lanes: int
    field: int

    @classmethod
    def of(cls, tiling: Tiling, tiles: int, k_max: int, field: int) -> Selection:
        """For rows of up to so many tiles."""
        registers = IN_REGISTERS if tiling.sections == 1 else SECTION_IN_REGISTERS
        tiles = min(TILES, power_of_2(tiling.section_tiles(tiles)))
        return cls(registers, BINS, tiles, chunk(k_max), BLOCK, 32 * WARPS, field)


class Row(NamedTuple):
    """A row in a program of `take_kernel`: numbers, then pointers to what it has."""

    number: tl.tensor
    length: tl.tensor
    budget: tl.tensor
    floor: tl.tensor
    used: tl.tensor  # tiles of its context
    found: tl.tensor  # candidates of all of its lists
    sizes: tl.tensor  # of its lists, `num_programs(0)` from one to the next
    entries: tl.tensor
    tiles: tl.tensor


@triton.jit
def _digit(counts, budget):
    """Which of three thresholds, counted in 21 bits each, the budget reaches: 0 to 3."""
    digit = ((counts & 0x1FFFFF) >= budget).to(tl.int32)
    digit += (((counts >> 21) & 0x1FFFFF) >= budget).to(tl.int32)
    return digit + ((counts >> 42) >= budget).to(tl.int32)


@triton.jit
def topk_rescored(inputs, scalars, row, slots, out, SCORING: tl.constexpr, SELECTION: tl.constexpr):
    """Score all tokens of a row, once for every two bits of the threshold, and take the best.

    Of fewer than 2**21 tokens: their counts share an int64.
    """
    BLOCK: tl.constexpr = SELECTION.block
    LANES: tl.constexpr = SELECTION.lanes
    length = row.length
    batch = row.number // SCORING.heads
    index = tl.arange(0, LANES)[:, None] * (BLOCK // LANES) + tl.arange(0, BLOCK // LANES)[None, :]
    head = (row.number % SCORING.heads).to(tl.int32) + tl.zeros((LANES,), tl.int32)
    threshold = 0
    above = 0
    ties_kept = 0
    ties = 0
    done = 0
    STEPS: tl.constexpr = (SCORING.score_bits + 1) // 2
    unit = 1 << (2 * STEPS - 2)
    # The threshold two bits at a time, how many are above it, then the slots.
    for step in range(0, STEPS + 2):
        reached = tl.zeros((LANES, BLOCK // LANES), dtype=tl.int64)
        for first in range(0, length, BLOCK):
            token = first + index
            valid = token < length
            slot = load_lanes(slots + token, valid)
            keys = load_codes(inputs.codes, slot, head, SCORING)
            bucket, special = common_bucket(length, first, BLOCK, SCORING)
            special |= (first < scalars.sink) | (first + BLOCK > length - scalars.recent)
            score = score_codes(
                inputs, scalars, keys, batch, head, slot, token, length, special, bucket, SCORING
            )
            score = tl.where(valid, score, -1)
            if step <= STEPS:
                # In the last of these steps the unit is 0 and all three are at least 1.
                one = tl.maximum(unit, 1)
                reached += (score >= threshold + one).to(tl.int64)
                reached += (score >= threshold + 2 * one).to(tl.int64) << 21
                reached += (score >= threshold + 3 * one).to(tl.int64) << 42
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
                tl.store(out + to, tl.reshape(slot, (BLOCK,)), mask=keep)
                done += tl.sum(kept, axis=0)
                ties += tl.sum(flat_tie, axis=0)
        counts = tl.sum(tl.reshape(reached, (BLOCK,)), axis=0)
        if step < STEPS:
            threshold += _digit(counts, row.budget) * unit
            unit = unit >> 2
        if step == STEPS:
            above = (counts & 0x1FFFFF).to(tl.int32)
            ties_kept = row.budget - above


@triton.jit
def load_sizes(sizes, section, TILING: tl.constexpr):
    """Candidates of a row, of its longest list, and of a section's; all the same of one section."""
    SECTIONS: tl.constexpr = TILING.sections
    found = 0
    longest = 0
    size = 0
    step = tl.num_programs(0)
    for number in tl.static_range(SECTIONS):  # by every thread, which takes no exchange
        each = tl.load(sizes + number * step)
        found += each
        longest = tl.maximum(longest, each)
        size = tl.where(number == section, each, size)
    return found, longest, size


@triton.jit
def take_kernel(
    inputs,
    scratch,
    out_ptr,
    scalars,
    SCORING: tl.constexpr,
    TILING: tl.constexpr,
    SELECTION: tl.constexpr,
    PDL: tl.constexpr,
):
    """Slots of one row, or of a section of it.

    All of them where the budget covers the context; and where a list has too few or too many, the
    row's tokens are scored again. Of a row's programs the first does both.
    """
    number = tl.program_id(0).to(tl.int64)
    batch = number // SCORING.heads
    length = tl.load(inputs.seq_lens + batch).to(tl.int32)
    budget = tl.minimum(tl.load(inputs.budgets + batch), tl.minimum(length, scalars.k_max))
    wait_for_last(PDL)
    start_next(PDL)
    section = tl.program_id(1)
    is_first = section == 0
    used = tl.cdiv(length, TILING.tile)
    entries = scratch.entries + number * (TILING.sections * scalars.room)
    tiles = scratch.tiles + number * scalars.tiles
    floor = tl.load(scratch.floors + number)
    sizes = scratch.found + batch * scalars.found_request
    sizes += number % SCORING.heads * scalars.found_head
    found, longest, size = load_sizes(sizes, section, TILING)
    row = Row(number, length, budget, floor, used, found, sizes, entries, tiles)
    if TILING.sections > 1:
        its_list = load_section(row, scratch, scalars, section, size, TILING, SELECTION)
    slots = inputs.token_slots + batch * scalars.token_slots_stride
    out = out_ptr + number * scalars.k_max
    if length <= budget:
        if is_first:
            for first in range(0, length, SELECTION.chunk):
                place = first + tl.arange(0, SELECTION.chunk)
                slot = tl.load(slots + place, mask=place < length, other=0)
                tl.store(out + place, slot, mask=place < length)
    elif (found >= budget) & (longest <= scalars.room):
        if TILING.sections > 1:
            in_memory = not topk_of_section(row, its_list, longest, out, SCORING, TILING, SELECTION)
        else:
            SIZES: tl.constexpr = SELECTION.registers
            in_memory = (found > SIZES[len(SIZES) - 1]) | (used > SELECTION.tiles)
            for i in tl.static_range(len(SIZES)):
                if fits(found, SIZES, i) & (used <= SELECTION.tiles):
                    topk_in_registers(row, out, SIZES[i], SCORING, SELECTION)
        if in_memory & is_first:
            topk_in_memory(row, scratch, scalars, out, SCORING, TILING, SELECTION)
    elif is_first:
        topk_rescored(inputs, scalars, row, slots, out, SCORING, SELECTION)
    if is_first:
        for first in range(0, scalars.k_max, SELECTION.chunk):
            place = first + tl.arange(0, SELECTION.chunk)
            tl.store(out + place, -1, mask=(place >= budget) & (place < scalars.k_max))
