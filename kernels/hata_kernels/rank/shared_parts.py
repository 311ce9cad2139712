"""Parts of `shared_kernel`: queries as numbers, keys as bits."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def bit_of(place):
    """Which bit of its word is at a place of 32: 0, 8, 16, 24, 1, 9, ... One shift and one mask
    then make four bytes that are 0 or 1.
    """
    return place // 4 + 8 * (place % 4)


@triton.jit
def unpack(word, bit, PTX: tl.constexpr):
    """Bits of words as int8. PTX takes four at a time, of which it reads the first word and bit:
    a thread must hold four neighbours of `bit_of`, as it does of operands of tensor cores.
    """
    if PTX:
        return tl.inline_asm_elementwise(
            "{ .reg .b32 bits; shr.u32 bits, $1, $5; and.b32 $0, bits, 0x01010101; }",
            "=r,r,r,r,r,r,r,r,r",
            [word, bit],
            dtype=tl.int8,
            is_pure=True,
            pack=4,
        )
    return ((word >> bit) & 1).to(tl.int8)


@triton.jit
def write_values(
    q_codes_ptr,
    values_ptr,
    bases_ptr,
    row,
    SCORING: tl.constexpr,
    VALUES: tl.constexpr,
):
    """What a row's query gives to a score for every bit of a key that is set, and for none.

    A bit that weighs A in the planes of the query that have it set, and S - A in the others, gives
    A or S - A: the base is the sum of the latter, the values are their differences.
    """
    place = tl.arange(0, VALUES)
    word = place // 32
    in_code = word < SCORING.words
    weight = tl.zeros((VALUES,), tl.int32)
    PLANES: tl.constexpr = SCORING.planes
    for plane in tl.static_range(PLANES):
        place_q = q_codes_ptr + (row * PLANES + plane) * SCORING.words + word
        query = tl.load(place_q, mask=in_code, other=0)
        weight += ((query >> bit_of(place % 32)) & 1) * SCORING.weights[plane]
    value = tl.where(in_code, 2 * weight - SCORING.full // (32 * SCORING.words), 0)
    tl.store(values_ptr + row * VALUES + place, value.to(tl.int8))
    tl.store(bases_ptr + row, SCORING.full - tl.sum(weight, axis=0))
