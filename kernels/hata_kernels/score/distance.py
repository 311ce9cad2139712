"""Distances of tokens from the query, in half octaves: what a learned bias of scores is by."""

from __future__ import annotations

import torch

#: Half octaves that the distances of 2**21 tokens, and of some more, fall into.
DISTANCES = 44
#: What a bias adds to a score at least, in whole numbers. Scores are below 2**20 (`rank`), so that
#: less would make no difference.
LEAST = -(2**20)


def distance_bucket(distance: torch.Tensor) -> torch.Tensor:
    """Return which half octave a distance is in.

    Parameters
    ----------
    distance : torch.Tensor
        Integers from 0 (the query's own token): the query's position minus the key's.

    Returns
    -------
    torch.Tensor
        int32, 0 to ``DISTANCES - 1``: with ``d + 1 = m * 2**e`` and m from 1 to 2, ``2 * e``, and
        one more from m = 1.5 on. That is the exponent of a float32 and the first bit after it,
        so that CPU and GPU, PyTorch and kernels, take the same two instructions. The last is of
        all distances beyond it, too.
    """
    return (((distance + 1).float().view(torch.int32) >> 22) - 254).clamp_max(DISTANCES - 1)


def whole_bias(bias: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Return a bias by distance as what it adds to scores.

    Parameters
    ----------
    bias : torch.Tensor
        float32 ``[Hkv, DISTANCES]``, none above 0, in scores of a query of step 1.
    step : torch.Tensor
        float32 ``[T, Hkv]``, of each query.

    Returns
    -------
    torch.Tensor
        int32 ``[T, Hkv, DISTANCES]``: ``floor(bias / step + 1/2)``, at least `LEAST`.
    """
    return (bias / step[..., None] + 0.5).floor().clamp_min(LEAST).int()
