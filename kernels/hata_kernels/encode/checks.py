"""Checks of what launches take less of than the encoders do on a CPU."""

from __future__ import annotations

import torch

from ..checks import expect

MAX_BITS = 1024


def expect_rows(**given: torch.Tensor) -> None:
    """Raise ``ValueError`` unless the last dimension of each ``[T, H, D]`` is contiguous."""
    for name, x in given.items():
        expect(x.stride(2) == 1, f"{name}.stride(2)", 1, x.stride(2))


def expect_bits(bits: int) -> None:
    """Raise ``ValueError`` for codes of more bits than one program holds."""
    expect(bits <= MAX_BITS, "bits", f"at most {MAX_BITS}", bits)
