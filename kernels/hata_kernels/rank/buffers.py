"""Sizes and device memory of what the launches of the ranking hand on, as kernels take it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from ..bits import WORD_BITS, power_of_2
from ..checks import expect
from ..score.scoring import Scoring

#: Warps of a program of the filter, and int32 words of codes that one of its threads holds.
FILTER_WARPS, THREAD_WORDS = 4, 32


#: Of up to so many rows each has so many lists, one for every section of its context, if scores
#: have no more than so many values; and counts of candidates by how far above the floor they are.
#: Where rows are few, a program for each takes longer for a list than all others took to make it.
SECTIONED_ROWS, SECTIONS, SECTIONED_LEVELS = 16, 8, 4096
BINS = 128
#: Tokens of a section at least: a list of few candidates does not repay a program.
SECTION_TOKENS = 8192
#: Numbers in a cache line.
LINE = 32


def filter_shape(kv_heads: int, words: int) -> tuple[int, int, int]:
    """Lanes of a program of the filter, tokens of a lane, and tokens of a tile."""
    heads = power_of_2(kv_heads)
    lanes = max(32 * FILTER_WARPS, heads)
    run = max(1, min(8, THREAD_WORDS // power_of_2(words)))
    return lanes, run, run * lanes // heads


def shared_values(kv_heads: int, words: int, plane_weights: Sequence[int]) -> int:
    """Numbers of a query by which tiles that rows share are scored; 0 where the filter has all.

    They are int8, so weights add up to 127 at most; a tile is 16 tokens or more for tensor cores;
    and codes of more than 256 bits do not fit registers.
    """
    fits = sum(plane_weights) <= 127 and filter_shape(kv_heads, words)[2] >= 16 and words <= 8
    return WORD_BITS * power_of_2(words) if fits else 0


@dataclass(frozen=True)
class Tiling:
    """A constant of kernels: how they divide a row's context, and its candidates into lists.

    Attributes
    ----------
    tile : int
        Tokens of a tile.
    sections : int
        Sections of a context, each with a list of its own.
    least : int
        Tiles of a section, at least.
    bins : int
        Counts of a section's candidates.
    """

    tile: int
    sections: int
    least: int
    bins: int

    @classmethod
    def of(cls, rows: int, scoring: Scoring, values: int) -> Tiling:
        """For so many rows; see `shared_values`.

        Only where a thread of the filter has all words of a code, and so none beyond it, can rows
        have sections: else several threads have each score, and would count it each.
        """
        words, tile = scoring.words, filter_shape(scoring.heads, scoring.words)[2]
        few = rows <= SECTIONED_ROWS and scoring.levels <= SECTIONED_LEVELS
        sections = SECTIONS if few and words == power_of_2(words) and not values else 1
        return cls(tile, sections, SECTION_TOKENS // tile, BINS)

    def section_tiles(self, tiles: int) -> int:
        """Tiles of a section of a row of so many, at most."""
        return max(-(-tiles // self.sections), self.least) if self.sections > 1 else tiles


class Scratch(NamedTuple):
    """What a kernel reads and writes of `RankBuffers`; the rest is None, and no argument of it."""

    floors: torch.Tensor | None = None
    found: torch.Tensor | None = None
    entries: torch.Tensor | None = None
    counts: torch.Tensor | None = None
    tiles: torch.Tensor | None = None
    bit_scores: torch.Tensor | None = None
    bases: torch.Tensor | None = None
    before: torch.Tensor | None = None
    shift: torch.Tensor | None = None


def found_steps(batch: int, kv_heads: int, values: int) -> tuple[int, int]:
    """Steps from a request to the next in `RankBuffers.found`, and from a KV head to the next; see
    `shared_values`.

    Atomics on one line wait for each other, unless they are one access: on numbers side by side.
    `filter_kernel` adds to a request's heads, which then are these. `shared_kernel` adds to many
    requests of a head, and so that the filter's atomics do not wait, every head has its own lines.
    """
    return (1, -(-batch // LINE) * LINE) if values else (kv_heads, 1)


@dataclass(frozen=True)
class RankSizes:
    """Sizes of the buffers between the launches.

    Attributes
    ----------
    tile : int
        Tokens of a tile.
    tiles : int
        Of a row of the full width.
    room : int
        Candidates that a list holds.
    values : int
        `shared_values` where groups are passed to the ranking, else 0.
    """

    tile: int
    tiles: int
    room: int
    values: int = 0

    @staticmethod
    def most_tokens(kv_heads: int, words: int, levels: int) -> int:
        """Tokens of a context, at most: 31 bits hold a score and a tile, 21 bits a number of tokens
        (`topk_rescored`).
        """
        return min(2**21 - 1, filter_shape(kv_heads, words)[2] << (31 - (levels - 1).bit_length()))

    @classmethod
    def of(
        cls, kv_heads: int, words: int, levels: int, width: int, k_max: int, values: int = 0
    ) -> RankSizes:
        """Sizes for a layer.

        Parameters
        ----------
        kv_heads, words : int
            KV heads, and int32 words of a code.
        levels : int
            `hata_kernels.score.score_levels`.
        width : int
            Tokens of the longest context.
        k_max : int
            Entries of a row of the result.
        values : int
            `shared_values` where groups are passed.

        Raises
        ------
        ValueError
            When the width is more than `most_tokens`.
        """
        tile = filter_shape(kv_heads, words)[2]
        most = cls.most_tokens(kv_heads, words, levels)
        bits = (levels - 1).bit_length()
        expect(width <= most, "width", f"at most {most} with scores of {bits} bits", width)
        # With a budget of a quarter of the context or more every token is a candidate.
        room = min(width, 4096 + 4 * k_max)
        return cls(tile, -(-width // tile), room, values)

    def with_room_for(self, other: RankSizes) -> RankSizes:
        """Sizes that serve both, of which tiles are of one size."""
        room, values = max(self.room, other.room), max(self.values, other.values)
        return replace(self, room=room, values=values)

    @property
    def field(self) -> int:
        """Bits of one of the two counts, of up to `room`, that a prefix sum holds."""
        return 16 if self.room < 2**15 else 32


class RankBuffers:
    """What the launches hand on, for up to `rows` rows.

    Layers that run one after the other share one, made for the most rows, the longest context and
    the largest k_max, if their codes are of the same size.

    Parameters
    ----------
    rows : int
        Requests times KV heads.
    sizes : RankSizes
    device : torch.device

    Attributes
    ----------
    floors : torch.Tensor
        int32 ``[rows, 1]``: the floor of a row.
    found : torch.Tensor
        int32 ``[numbers, 1]``: how many candidates a list has. Rows are where `found_steps` says;
        with sections those of every section follow one another.
    entries : torch.Tensor
        int64 ``[lists, room]``: candidates; above 32 bits of the slot the tile, in those of 31 bits
        that a score leaves (`hata_kernels.score.scoring.Scoring.score_bits`), and the score. A row
        has one list, or one for every section side by side.
    counts : torch.Tensor
        int32 ``[lists of sections, BINS]``: candidates by how far above the floor, the last or
        farther.
    tiles : torch.Tensor
        int64 ``[rows, tiles]``: where a tile's candidates begin, above 32 bits of their number.
    bit_scores, bases : torch.Tensor
        int8 ``[rows, values]`` and int32 ``[rows, 1]``, of no columns where `values` is 0: what a
        row's query gives to a score for every bit of a key that is set, and for none.
    before, shift : torch.Tensor
        ``[lists, room + 1]`` and ``[rows, tiles]``, int32 or int64: two counts of the kept that
        precede a candidate in the list, and what a tile adds to them.
    """

    def __init__(self, rows: int, sizes: RankSizes, device: torch.device) -> None:
        def make(width: int, dtype: torch.dtype, rows: int = rows) -> torch.Tensor:
            return torch.empty(rows, width, dtype=dtype, device=device)

        counted = min(rows, SECTIONED_ROWS) * SECTIONS
        lists = max(rows, counted)
        sums = torch.int32 if sizes.field == 16 else torch.int64
        self.rows, self.sizes = rows, sizes
        self.floors = make(1, torch.int32)
        self.found = make(1, torch.int32, rows * LINE if sizes.values else lists)
        self.entries = make(sizes.room, torch.int64, lists)
        self.counts = make(BINS, torch.int32, counted)
        self.tiles = make(sizes.tiles, torch.int64)
        self.bit_scores = make(sizes.values, torch.int8)
        self.bases = make(min(sizes.values, 1), torch.int32)
        self.before = make(sizes.room + 1, sums, lists)
        self.shift = make(sizes.tiles, sums)

    def scratch(self, *names: str) -> Scratch:
        """These tensors, as a kernel takes them."""
        return Scratch(**{name: getattr(self, name) for name in names})

    def check(self, rows: int, sizes: RankSizes, device: torch.device) -> None:
        """Check that a call fits.

        Raises
        ------
        ValueError
            When it has more rows, needs more of anything, or is elsewhere.
        """
        expect(self.found.device == device, "buffers.device", device, self.found.device)
        expect(self.rows >= rows, "buffers.rows", f"at least {rows}", self.rows)
        made = self.sizes
        large = made.tiles >= sizes.tiles and made.room >= sizes.room
        fits = large and made.values >= sizes.values and made.tile == sizes.tile
        expect(fits, "buffers.sizes", f"those of {sizes} or more", made)
