"""Encoders: the coded methods behind one interface.

The score of a token is always ``sum_p w_p * (r - hamming(query plane p, key code))``; encoders
differ in how bits come from keys and queries, in the number of planes P and in their weights w.
Keys may have a scale that multiplies it, and queries a bias by distance that is added.
"""

from __future__ import annotations

from .asymmetric import AsymmetricEncoder
from .base import Encoder, Queries, dense_scores
from .linear import LinearEncoder
from .mlp import MlpEncoder

__all__ = [
    "AsymmetricEncoder",
    "Encoder",
    "LinearEncoder",
    "MlpEncoder",
    "Queries",
    "dense_scores",
]
