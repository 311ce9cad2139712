"""Encode queries and keys into packed sign codes (HATA, section 3.1)."""

from __future__ import annotations

import torch

from .naive import encode_naive
from .naive_planes import encode_planes_naive
from .naive_residual import encode_residual_naive

__all__ = ["encode", "encode_naive", "encode_planes_naive", "encode_residual_naive"]


def encode(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    slots: torch.Tensor | None = None,
) -> torch.Tensor:
    """Encode with the implementation for ``x``'s device; see `encode_naive` for the contract.

    Without scales: those are left to the encoders, which know their steps.

    On CUDA one Triton launch handles all tokens and heads. There ``weight`` may have ``x``'s dtype
    (converted once by the caller), which lets bf16 and fp16 use the tensor cores; with a float32
    weight the products are computed in float32.
    """
    if x.is_cuda:
        from .triton import encode_triton

        return encode_triton(x, weight, bias=bias, out=out, slots=slots)
    return encode_naive(x, weight, bias=bias, out=out, slots=slots)
