"""The numbers that scores are: their range, their dtype, and how scales multiply them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

#: By the bits of a scale; of int16 the low 16 bits count.
SCALE_DTYPES = {8: torch.uint8, 16: torch.int16}

# Values of scaled scores, at most, forced ones included.
SCALED_LEVELS = 2048


def full_score(plane_weights: Sequence[int], bits: int) -> int:
    """Return M, the score of a token that agrees in every bit of every plane."""
    return sum(plane_weights) * bits


def score_shift(full: int, scale_bits: int) -> int:
    """Return by how many bits scaled scores are shifted to the right.

    Parameters
    ----------
    full : int
        M of `full_score`.
    scale_bits : int
        Bits of a scale, 8 or 16.

    Returns
    -------
    int
        The smallest shift that leaves ``2 * M * (2**scale_bits - 1)`` below 2047.
    """
    highest = 2 * full * (2**scale_bits - 1)
    return next(shift for shift in range(64) if highest >> shift < SCALED_LEVELS - 1)


def score_levels(plane_weights: Sequence[int], bits: int, scale_bits: int = 0) -> int:
    """Return how many values a score can take: 0 to the highest, and one more if forced.

    The highest is ``M = r * sum(plane_weights)``, with scales
    ``2 * M * (2**scale_bits - 1) >> shift``.

    Parameters
    ----------
    plane_weights : sequence of int
        Weight of each query plane of a KV head.
    bits : int
        Bits per code, r.
    scale_bits : int
        Bits of the keys' scales, 0 for none.
    """
    full = full_score(plane_weights, bits)
    if scale_bits == 0:
        return full + 2
    return (2 * full * (2**scale_bits - 1) >> score_shift(full, scale_bits)) + 2


def scaled_scores(
    signed: torch.Tensor, scales: torch.Tensor, full: int, scale_bits: int
) -> torch.Tensor:
    """Weight signed agreement by the keys' scales, as small integers that are not negative.

    Parameters
    ----------
    signed : torch.Tensor
        int32, ``2 * agreement - M``: minus M to M.
    scales : torch.Tensor
        Integers of 0 to ``2**scale_bits - 1``, of a shape that broadcasts.
    full : int
        M.
    scale_bits : int
        8 or 16.

    Returns
    -------
    torch.Tensor
        ``(signed * scale + M * (2**scale_bits - 1)) >> score_shift(M, scale_bits)``; int32, or
        int64 where the product needs it.
    """
    most = 2**scale_bits - 1
    dtype = torch.int32 if 2 * full * most < 2**31 else torch.int64
    return (signed.to(dtype) * scales.to(dtype) + full * most) >> score_shift(full, scale_bits)
