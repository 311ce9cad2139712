"""Encode queries and keys into packed sign codes (HATA, section 3.1)."""

from .naive import encode_naive
from .naive_planes import encode_planes_naive
from .naive_residual import encode_residual_naive

__all__ = ["encode_naive", "encode_planes_naive", "encode_residual_naive"]
