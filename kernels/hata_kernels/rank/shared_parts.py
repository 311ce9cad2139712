"""Parts of `shared_kernel`: queries as numbers, keys as bits, and what becomes of scores."""

from __future__ import annotations

import triton
import triton.language as tl

from .tokens import bin_place, pack_entries


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
    WEIGHTS: tl.constexpr,
    PLANES: tl.constexpr,
    WORDS: tl.constexpr,
    FULL: tl.constexpr,
    VALUES: tl.constexpr,
):
    """What a row's query gives to a score for every bit of a key that is set, and for none.

    A bit that weighs A in the planes of the query that have it set, and S - A in the others, gives
    A or S - A: the base is the sum of the latter, the values are their differences.
    """
    place = tl.arange(0, VALUES)
    word = place // 32
    weight = tl.zeros((VALUES,), tl.int32)
    for plane in tl.static_range(PLANES):
        query = tl.load(
            q_codes_ptr + (row * PLANES + plane) * WORDS + word, mask=word < WORDS, other=0
        )
        weight += ((query >> bit_of(place % 32)) & 1) * WEIGHTS[plane]
    value = tl.where(word < WORDS, 2 * weight - FULL // (32 * WORDS), 0)
    tl.store(values_ptr + row * VALUES + place, value.to(tl.int8))
    tl.store(bases_ptr + row, FULL - tl.sum(weight, axis=0))


@triton.jit
def emit(
    score, slot, tile, entries_run, kept, field, counts_row,
    SCORE_BITS: tl.constexpr, BIN_BITS: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """List and count the scores of a run that `kept` has a one for, in four bits a token.

    Triton would move all scores between threads to store some of them, and compute all their
    addresses. In PTX every thread stores what it has.
    """
    before = kept * 0x11111110
    one = 1 << field
    unit: tl.constexpr = 1 << (31 - SCORE_BITS)
    down: tl.constexpr = SCORE_BITS - BIN_BITS
    if PTX:
        tl.inline_asm_elementwise(
            """{
            .reg .pred low; .reg .b32 number, high; .reg .b64 place;
            and.b32 number, $5, $6;
            setp.eq.b32 low, number, 0;
            @low bra DONE;
            bfe.u32 number, $7, $8, 4;
            mad.wide.u32 place, number, 8, $4;
            mad.lo.s32 high, $1, $10, $3;
            st.global.v2.b32 [place], {$2, high};
            shr.u32 number, $1, $11;
            shr.u32 high, number, 2;
            bfi.b32 number, number, high, $12, 2;
            mad.wide.u32 place, number, 4, $9;
            red.relaxed.gpu.global.add.u32 [place], 1;
            DONE: mov.b32 $0, 0;
            }""",
            "=r,r,r,r,l,r,r,r,r,l,r,r,r",
            [
                score, slot, tile, entries_run.to(tl.int64), kept, one, before, field,
                counts_row.to(tl.int64), unit, down, BIN_BITS - 2,
            ],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )  # fmt: skip
    else:
        keep = (kept & one) != 0
        entry = pack_entries(score, tile, slot, SCORE_BITS)
        tl.store(entries_run + ((before >> field) & 15), entry, mask=keep)
        added = tl.full(score.shape, 1, tl.int32)
        tl.atomic_add(
            counts_row + bin_place(score >> down, BIN_BITS), added, mask=keep, sem="relaxed"
        )
