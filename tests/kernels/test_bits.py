"""Bit packing against plain Python integers."""

from __future__ import annotations

import pytest
import torch

from hata_kernels.bits import pack_bits


@pytest.mark.parametrize("shape", [(32,), (1, 64), (5, 3, 96), (2, 0, 32)], ids=str)
def test_pack_puts_bit_j_of_word_w_at_place_32w_plus_j(shape: tuple[int, ...]) -> None:
    bits = torch.rand(shape) < 0.5
    words = pack_bits(bits)
    assert words.shape == (*shape[:-1], shape[-1] // 32)
    rows = bits.reshape(-1, shape[-1]), words.reshape(-1, words.shape[-1])
    for row, packed in zip(*rows, strict=True):
        for w, word in enumerate(packed.tolist()):
            expected = sum(int(row[32 * w + j]) << j for j in range(32))
            assert word & 0xFFFFFFFF == expected


def test_pack_of_a_strided_view_equals_pack_of_its_copy() -> None:
    bits = (torch.rand(64, 7) < 0.5).t()
    assert torch.equal(pack_bits(bits), pack_bits(bits.contiguous()))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pack_bits(torch.ones(4, 48, dtype=torch.bool)), "multiple of 32, found 48"),
        (lambda: pack_bits(torch.ones(4, 32)), r"bits\.dtype: expected torch\.bool"),
    ],
    ids=["48-bits", "floats"],
)
def test_wrong_arguments_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
