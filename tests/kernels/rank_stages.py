"""What each launch of the ranking hands on, by PyTorch and loops: floors, lists, and slots."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

import rank_cases as cases
from hata_kernels.rank import RankBuffers, shared_values
from hata_kernels.score import score_levels, score_naive

#: Every byte of a buffer before the ranking: no launch writes such numbers.
BYTE = 0x7F


class Row(NamedTuple):
    """A KV head of a request: what its tokens score, and how many are kept."""

    number: int
    request: int
    head: int
    length: int
    budget: int
    slots: torch.Tensor
    scores: torch.Tensor
    #: Of weighted bits, before scales, of sinks and recent tokens as of any other.
    agreement: torch.Tensor

    @property
    def whole(self) -> bool:
        """The row keeps all its tokens: no launch but the last looks at it."""
        return self.length <= self.budget


def rows_of(arguments, options) -> list[Row]:
    """Rows of the arguments of a ranking, on the CPU, with `score_naive`'s scores."""
    _, codes, token_slots, seq_lens, budgets = arguments
    kv_heads, weights = codes.shape[1], options["plane_weights"]

    def score(**of) -> torch.Tensor:
        return score_naive(*arguments[:4], plane_weights=weights, **of).long()

    of = {name: options[name] for name in ("sink", "recent", "scales", "scale_bits", "bias")}
    scores, agreement = score(**of), score(sink=0, recent=0, scales=None, scale_bits=0)
    return [
        Row(
            number=request * kv_heads + head,
            request=request,
            head=head,
            length=length,
            budget=min(int(budgets[request]), options["k_max"]),
            slots=token_slots[request, :length].long(),
            scores=scores[request, head, :length],
            agreement=agreement[request, head, :length],
        )
        for request, length in enumerate(seq_lens.tolist())
        for head in range(kv_heads)
    ]


def sample_rank(length: int, budget: int, sample: int, deviations: float) -> int:
    """How many tokens of the sample reach the floor, at least."""
    expected = torch.tensor(budget, dtype=torch.float32) * sample
    expected = expected / torch.tensor(length, dtype=torch.float32)
    rank = float(expected + deviations * torch.sqrt(expected) + 4)
    # A GPU rounds quotients and roots otherwise.
    assert abs(rank - round(rank)) > 1e-3, f"{budget} of {length} tokens: a rank of {rank}"
    return int(rank)


def floor_of(row: Row, score_bits: int, *, sample: int, unsampled: int, deviations: float) -> int:
    """Floor of a row that is not kept whole: what enough tokens of its sample reach."""
    if row.length <= unsampled or row.budget * 4 >= row.length:
        return 0
    rank = sample_rank(row.length, row.budget, sample, deviations)
    tokens = [
        (place * 1024 + (place * 40503) % 1024) * row.length // (sample * 1024)
        for place in range(sample)
    ]
    scores = sorted(row.scores[tokens].tolist(), reverse=True)
    if rank <= 0:  # all values are reached: the highest of an even number of bits
        return 4 ** math.ceil(score_bits / 2) - 1
    return scores[rank - 1] if rank <= sample else 0


def key_bits(keys: torch.Tensor, values: int) -> torch.Tensor:
    """Bits of codes ``[n, words]`` in the order of `bit_scores`, int64 ``[n, values]``."""
    bits = torch.zeros(len(keys), values, dtype=torch.int64)
    for word in range(keys.shape[1]):
        for place in range(32):
            bit = place // 4 + 8 * (place % 4)  # byte by byte of the word: 0, 8, 16, 24, 1, ...
            bits[:, 32 * word + place] = keys[:, word].long() >> bit & 1
    return bits


def list_of(row: Row, floor: int, tile: int, score_bits: int) -> list[list[int]]:
    """Candidates of a row, packed as in `RankBuffers.entries`: tile by tile."""
    scores, slots = row.scores.tolist(), row.slots.tolist()
    return [
        [
            scores[token] << (63 - score_bits) | start // tile << 32 | slots[token]
            for token in range(start, min(start + tile, row.length))
            if scores[token] >= floor
        ]
        for start in range(0, row.length, tile)
    ]


def take_of(pieces: list[list[int]], budget: int, k_max: int, score_bits: int) -> list[int]:
    """Slots of a row from its candidates, tile by tile: the best, ties to the first."""
    entries = [entry for piece in pieces for entry in piece]
    scores = [entry >> (63 - score_bits) for entry in entries]
    threshold = sorted(scores, reverse=True)[budget - 1]
    ties_kept = budget - sum(score > threshold for score in scores)
    slots = []
    for entry, score in zip(entries, scores, strict=True):
        if score > threshold or (score == threshold and ties_kept > 0):
            slots.append(entry & 0xFFFFFFFF)
            ties_kept -= score == threshold
    return slots + [-1] * (k_max - budget)


class Ranked:
    """Result and buffers of Triton's ranking, on the CPU; what it did not write is poison.

    Attributes
    ----------
    out : torch.Tensor
        The result.
    found : torch.Tensor
        ``[requests, heads]``: how many candidates a row has.
    values : int
        Of a query as shared tiles are scored with it, 0 where the filter scores all tiles.
    levels, score_bits : int
        Values of scores, and bits of one in a list's entries.
    tensors : dict of str to torch.Tensor
        All of the buffers.
    """

    def __init__(self, device, arguments, options, groups=None, more: int = 2) -> None:
        _, codes, token_slots, _, _ = arguments
        (batch, width), (_, kv_heads, words) = token_slots.shape, codes.shape
        weights, k_max = options["plane_weights"], options["k_max"]
        self.values = 0 if groups is None else shared_values(kv_heads, words, weights)
        # Of a wider table and for more rows than there are.
        wider = {"width": width + 100 * more, "values": self.values}
        sizes = cases.sizes_of(arguments, options, k_max, **wider)
        if sizes.room < sizes.tile:  # the filter scores all tiles
            self.values = 0
        buffers = RankBuffers(batch * kv_heads + more, sizes, device)
        tensors = {n: t for n, t in vars(buffers).items() if isinstance(t, torch.Tensor)}
        for tensor in tensors.values():
            tensor.view(torch.uint8).fill_(BYTE)
        out = torch.empty(batch, kv_heads, k_max, dtype=torch.int32, device=device)
        out.fill_(poison(out.dtype))
        moved = [argument.to(device) for argument in arguments]
        options = cases.on(device, options)
        cases.rank_triton(*moved, **options, out=out, buffers=buffers, groups=groups)
        self.sizes, self.rows, self.out = sizes, batch * kv_heads, out.cpu()
        self.levels = score_levels(weights, 32 * words, options["scale_bits"])
        self.score_bits = (self.levels - 1).bit_length()
        self.tensors = {name: tensor.cpu() for name, tensor in tensors.items()}
        self.floors, self.bases = self.tensors["floors"], self.tensors["bases"]
        self.entries, self.tiles = self.tensors["entries"], self.tensors["tiles"]
        found = self.tensors["found"].flatten()
        self.found = cases.found_of(found, batch, kv_heads, self.values)

    def handed(self, row: Row) -> dict[str, torch.Tensor]:
        """All that is handed on for a row."""
        names = ("floors", "entries", "tiles", "bit_scores", "bases")
        handed = {name: self.tensors[name][row.number] for name in names}
        return handed | {"found": self.found[row.request, row.head]}

    def pieces(self, row: Row) -> list[tuple[int, int]]:
        """Where in the row's list the candidates of its tiles begin, and how many there are."""
        used = -(-row.length // self.sizes.tile)
        pieces = self.tiles[row.number, :used].tolist()
        return [(piece >> 32, piece & 0xFFFFFFFF) for piece in pieces]

    def list(self, row: Row) -> list[list[int]]:
        """Candidates of a row, tile by tile."""
        entries = self.entries[row.number].tolist()
        return [entries[begin : begin + count] for begin, count in self.pieces(row)]

    def serves(self, row: Row) -> bool:
        """The row's slots come from its list."""
        found = int(self.found[row.request, row.head])
        return not row.whole and row.budget <= found <= self.sizes.room


def poison(dtype: torch.dtype) -> int:
    """What a number of so many bytes is where nothing was written."""
    return int.from_bytes(bytes([BYTE] * dtype.itemsize), "little")


def untouched(tensor: torch.Tensor) -> bool:
    return bool(tensor.eq(poison(tensor.dtype)).all())
