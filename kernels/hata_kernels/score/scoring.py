"""How codes are scored, as the kernels that do it are compiled for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch

from ..bits import WORD_BITS, power_of_2
from .levels import full_score, score_levels, score_shift


@dataclass(frozen=True)
class Scoring:
    """A constant of kernels: what scores depend on, but for queries and keys.

    Triton compiles a kernel anew where a field differs, and reads the properties as it compiles.

    Attributes
    ----------
    heads : int
        KV heads.
    words : int
        int32 words of a code.
    weights : tuple of int
        Of a query's planes.
    scale_bits : int
        Bits of the keys' scales, 0 without.
    biased : bool
        Whether scores gain a bias by distance.
    ptx : bool
        Whether there is inline assembly: Triton's interpreter has none.
    """

    heads: int
    words: int
    weights: tuple[int, ...]
    scale_bits: int
    biased: bool
    ptx: bool

    @classmethod
    def of(
        cls, codes: torch.Tensor, plane_weights: Sequence[int], scale_bits: int, biased: bool
    ) -> Scoring:
        """For codes ``[slots, kv_heads, words]``, where they are."""
        return cls(*codes.shape[1:], tuple(plane_weights), scale_bits, biased, codes.is_cuda)

    def __repr__(self) -> str:
        """Properties as well: Triton's cache on disk knows a constant by its text."""
        derived = [name for name, of in vars(Scoring).items() if isinstance(of, property)]
        names = [field.name for field in fields(self)] + derived
        return f"Scoring({', '.join(f'{name}={getattr(self, name)}' for name in names)})"

    @property
    def heads_pow2(self) -> int:
        """KV heads, and those beyond that programs work on side by side."""
        return power_of_2(self.heads)

    @property
    def planes(self) -> int:
        """Planes of a query."""
        return len(self.weights)

    @property
    def words_pow2(self) -> int:
        """Words that a program loads: those beyond the code are 0."""
        return power_of_2(self.words)

    @property
    def piece(self) -> int:
        """Words of a code that a thread loads at once, at most 16 bytes."""
        return min(4, self.words_pow2)

    @property
    def pieces(self) -> int:
        """Such loads of a code."""
        return self.words_pow2 // self.piece

    @property
    def doubling(self) -> bool:
        """Whether weights double from plane to plane."""
        return self.weights == tuple(self.weights[0] << plane for plane in range(self.planes))

    @property
    def equal(self) -> bool:
        """Whether all weights are the same."""
        return len(set(self.weights)) == 1

    @property
    def full(self) -> int:
        """M, the score of a key that agrees in every bit of every plane, before scales."""
        return full_score(self.weights, self.words * WORD_BITS)

    @property
    def levels(self) -> int:
        """Values that a score can take."""
        return score_levels(self.weights, self.words * WORD_BITS, self.scale_bits)

    @property
    def forced(self) -> int:
        """Score of tokens that are kept whatever their codes: above all others."""
        return self.levels - 1

    @property
    def score_bits(self) -> int:
        """Bits of a score."""
        return self.forced.bit_length()

    @property
    def most(self) -> int:
        """The largest scale; 0 without scales."""
        return 2**self.scale_bits - 1

    @property
    def shift(self) -> int:
        """By how many bits scaled scores are shifted to the right."""
        return score_shift(self.full, self.scale_bits)

    @property
    def wide(self) -> bool:
        """Whether products of scores and scales need 64 bits."""
        return 2 * self.full * self.most >= 2**31
