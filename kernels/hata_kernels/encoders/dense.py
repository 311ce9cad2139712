"""Scores of all queries against all keys, without packing: for training and evaluation."""

from __future__ import annotations

import torch

from ..score.levels import scaled_scores
from .base import Encoder


def dense_scores(encoder: Encoder, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Score every key for every query: the integers that serving ranks by, before sink and recent.

    Parameters
    ----------
    encoder : Encoder
    q : torch.Tensor
        ``[N, Hq, D]``.
    k : torch.Tensor
        ``[S, Hkv, D]``.

    Returns
    -------
    torch.Tensor
        float32 ``[Hkv, N, S]``, whole numbers. Every intermediate is exact, so results are equal,
        not close, to those of encoding and scoring the same inputs on the CPU.

    Raises
    ------
    ValueError
        When a shape, dtype or device does not fit.
    """
    weights = torch.tensor(encoder.plane_weights, dtype=torch.float32, device=q.device)
    planes = encoder.query_bits_of(q).float() * 2 - 1
    queries = (planes * weights.view(-1, 1)).sum(dim=2).transpose(0, 1)
    bits, scales = encoder.key_bits(k), encoder.key_scales(k)
    keys = bits.float() * 2 - 1
    # Integers below 2**24 in float32: the products are exact, also in tf32 (8-bit factors).
    signed = torch.bmm(queries, keys.permute(1, 2, 0))
    full = encoder.bits * sum(encoder.plane_weights)
    if scales is None:
        return (signed + full) / 2
    return scaled_scores(signed.int(), scales.T.unsqueeze(1), full, encoder.scale_bits).float()
