"""Encoders: the coded methods behind one interface.

The score of a token is always ``sum_p w_p * (r - hamming(query plane p, key code))``; encoders
differ in how bits come from keys and queries, in the number of planes P and in their weights w.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..checks import expect
from .asymmetric import AsymmetricEncoder
from .base import Encoder
from .dense import dense_scores
from .linear import LinearEncoder
from .mlp import MlpEncoder

__all__ = [
    "ENCODERS",
    "AsymmetricEncoder",
    "Encoder",
    "LinearEncoder",
    "MlpEncoder",
    "dense_scores",
    "make_encoder",
]

ENCODERS: dict[str, type[Encoder]] = {
    "hata": LinearEncoder,
    "random": LinearEncoder,
    "asymmetric": AsymmetricEncoder,
    "hashattention": MlpEncoder,
}


def make_encoder(
    method: str,
    tensors: Mapping[str, torch.Tensor],
    *,
    num_kv_heads: int,
    group: int,
    head_dim: int,
    **options: int | float,
) -> Encoder:
    """Make the encoder of a method; arguments as `Encoder.from_tensors`.

    Raises
    ------
    ValueError
        When the method keeps no codes, or a tensor or an option does not fit.
    """
    expect(method in ENCODERS, "method", " or ".join(ENCODERS), method)
    return ENCODERS[method].from_tensors(
        tensors, num_kv_heads=num_kv_heads, group=group, head_dim=head_dim, **options
    )
