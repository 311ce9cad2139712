"""Packing of sign bits into int32 words.

Bit j of word w holds bit ``32 * w + j``. Needs a little-endian host (x86-64, Arm): the packer
builds bytes and reads them back as words.
"""

from __future__ import annotations

import torch

from .checks import expect, expect_tensor

WORD_BITS = 32


def power_of_2(number: int) -> int:
    """Smallest power of two that is not below a positive number."""
    return 1 << (number - 1).bit_length()


# Multiplying eight bytes that are 0 or 1 by this moves byte i to bit 56 + i: every partial product
# lands on a bit of its own, so nothing carries.
_GATHER_BYTES = 0x0102040810204080


def pack_bits(bits: torch.Tensor) -> torch.Tensor:
    """Pack booleans into int32 words.

    Parameters
    ----------
    bits : torch.Tensor
        bool ``[..., r]`` with r a multiple of 32.

    Returns
    -------
    torch.Tensor
        int32 ``[..., r // 32]``.

    Raises
    ------
    ValueError
        When the dtype is not bool or r is not a multiple of 32.
    """
    expect_tensor("bits", bits, dtypes=(torch.bool,))
    r = bits.shape[-1]
    expect(r > 0 and r % WORD_BITS == 0, "bits.shape[-1]", "a multiple of 32", r)
    eights = bits.contiguous().view(torch.uint8).view(torch.int64)
    # The shift is arithmetic, but the cast to uint8 keeps the low eight bits only.
    return (eights * _GATHER_BYTES >> 56).to(torch.uint8).view(torch.int32)
