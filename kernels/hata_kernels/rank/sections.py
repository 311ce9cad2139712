"""Sections of a context, each with a list of its own, where rows are so few that one is too long.

A program takes so many candidates in a microsecond; of few rows there are fewer programs than
multiprocessors. With lists of sections, and counts of their candidates by score that the filter
makes, a program for every section finds the row's threshold and where its own slots go by itself.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .held import between, holds, place_held
from .tokens import unpack_entries

# Tokens of a section at least: a list of few candidates does not repay a program.
LEAST = 8192


def most_tiles(tiles: int, tile: int, sections: int) -> int:
    """`section_tiles` of a row of so many tiles of so many tokens, for the host."""
    return max(-(-tiles // sections), LEAST // tile) if sections > 1 else tiles


@triton.jit
def section_tiles(used, TILE: tl.constexpr, SECTIONS: tl.constexpr, LEAST: tl.constexpr):
    """Tiles of a section of a row of so many; the last may have fewer, or none."""
    return tl.maximum(tl.cdiv(used, SECTIONS), LEAST // TILE)


@triton.jit
def load_sizes(found_row, step, section, SECTIONS: tl.constexpr):
    """Candidates of a row, of its longest list, and of a section's; all the same of one section."""
    found = 0
    longest = 0
    size = 0
    for number in tl.static_range(SECTIONS):  # by every thread, which takes no exchange
        each = tl.load(found_row + number * step)
        found += each
        longest = tl.maximum(longest, each)
        size = tl.where(number == section, each, size)
    return found, longest, size


@triton.jit
def load_section(
    entries_list,
    counts_row,
    tiles_row,
    room,
    section,
    first_tile,
    tiles,
    SECTIONS: tl.constexpr,
    COUNTED: tl.constexpr,
    HELD: tl.constexpr,
    TILES: tl.constexpr,
):
    """All that `take_section` reads, before it is known whether it serves: one wait, not four.

    Of a row that has no lists it is what another call left, or nothing that was written.

    Returns
    -------
    total, earlier : [COUNTED]
        Counts of the row, and of the sections before.
    entry : [HELD]
    piece : [TILES]
    """
    index = tl.arange(0, HELD)
    entry = tl.load(entries_list + index, mask=index < room, other=-1)
    tile = tl.arange(0, TILES)
    piece = tl.load(tiles_row + first_tile + tile, mask=tile < tiles, other=0)
    total = tl.zeros((COUNTED,), tl.int32)
    earlier = tl.zeros((COUNTED,), tl.int32)
    for number in tl.static_range(SECTIONS):
        counts = tl.load(counts_row + number * COUNTED + tl.arange(0, COUNTED))
        total += counts
        earlier += tl.where(number < section, counts, 0)
    return total, earlier, entry, piece


@triton.jit
def take_section(
    total,
    earlier,
    entry,
    piece,
    entries_list,
    out_row,
    size,
    longest,
    found,
    tiles,
    first_tile,
    budget,
    floor,
    SCORING: tl.constexpr,
    COUNTED: tl.constexpr,
    HELD: tl.constexpr,
    SIZES: tl.constexpr,
    TILES: tl.constexpr,
):
    """Take the best of one section's list; return whether the row's lists serve in this way.

    They do not where the threshold is too far above the floor to be counted by itself, a list is
    longer than the largest of the sizes HELD, or a section has more than TILES tiles; nor where a
    candidate was counted more than once (`sections_of`).
    """
    threshold, high, above = between(total, found, budget, floor, SCORING, COUNTED)
    serves = (high - threshold == 1) & (longest <= HELD[SIZES - 1]) & (tiles <= TILES)
    serves = serves & (tl.sum(total, axis=0) == found)
    if serves & (size > 0):
        ties_kept = budget - above
        excess = tl.arange(0, COUNTED) + floor - threshold
        precede = tl.where(excess > 0, 1, tl.where(excess == 0, 1 << 16, 0))
        offset = tl.sum(precede * earlier, axis=0)
        for i in tl.static_range(SIZES):
            if holds(size, HELD, i):
                here = tl.arange(0, HELD[i]) < size
                held = entry
                if i > 0:
                    held = tl.load(entries_list + tl.arange(0, HELD[i]), mask=here, other=-1)
                score, its_tile, slot = unpack_entries(tl.where(here, held, -1), SCORING)
                place_held(
                    score,
                    its_tile - first_tile,
                    slot,
                    here,
                    piece,
                    out_row,
                    threshold,
                    ties_kept,
                    offset,
                    HELD[i],
                )
    return serves
