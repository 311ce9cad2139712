"""Triton encoder of keys in two stages: signs, then signs of what the first ones left over."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..bits import WORD_BITS
from .triton import Stored, count_written, expect_bits, expect_rows, store_scales


@triton.jit
def _project(
    acc,
    x_rows,
    valid,
    weight_columns,
    in_half,
    DIM: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Add the product of rows and some columns of the weight to ``acc``."""
    for start in range(0, DIM, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        in_d = d < DIM
        x = tl.load(x_rows[:, None] + d[None, :], mask=valid[:, None] & in_d[None, :], other=0)
        w = tl.load(
            weight_columns[None, :] + d[:, None] * BITS,
            mask=in_d[:, None] & in_half[None, :],
            other=0,
        )
        # ieee: tf32 would drop 13 bits of float32 inputs and flip signs far from zero.
        acc = tl.dot(x, w, acc=acc, input_precision="ieee")
    return acc


@triton.jit
def _store_bits(
    positive, out_rows, valid, in_half, BLOCK_M: tl.constexpr, COLUMNS: tl.constexpr,
    UNIT: tl.constexpr,
):  # fmt: skip
    """Pack bits into units of 16 or 32 and store those of the half."""
    column = tl.arange(0, COLUMNS)
    bit = positive.to(tl.int32) << (column % UNIT)[None, :]
    UNITS: tl.constexpr = COLUMNS // UNIT
    # The bits are disjoint, so the sum is their union; the highest makes it wrap to the sign bit.
    packed = tl.sum(tl.reshape(bit, (BLOCK_M, UNITS, UNIT)), axis=2)
    # A half is whole units: all columns of one are inside or none.
    inside = tl.max(tl.reshape(in_half.to(tl.int32), (UNITS, UNIT)), axis=1) > 0
    places = out_rows[:, None] + tl.arange(0, UNITS)[None, :]
    packed = packed.to(out_rows.dtype.element_ty)
    tl.store(places, packed, mask=valid[:, None] & inside[None, :])


# For 1 and for multiples of 16 Triton would compile the same anew.
@triton.jit(do_not_specialize=["rows"])
def _residual_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    stored,
    rows,
    x_stride_token,
    x_stride_head,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BITS: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_1: tl.constexpr,
    BLOCK_2: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program: all bits of BLOCK_M keys of one KV head. Also a part of other kernels.

    Every first-stage sign reaches every second-stage projection: those are all kept (BLOCK_2
    columns), and BLOCK_1 first-stage columns at a time are added to them.
    """
    HALF: tl.constexpr = BITS // 2
    head = tl.program_id(1)
    token = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = token < rows
    token = token.to(tl.int64)
    place = tl.load(stored.slots + token, mask=valid, other=0).to(tl.int64)
    if stored.tally is not None:  # noqa: SIM102 - decided when it is compiled
        if head == 0:
            count_written(stored.tally, place)
    x_rows = x_ptr + token * x_stride_token + head * x_stride_head
    weight_head = weight_ptr + head * DIM * BITS
    bias_head = bias_ptr + head * BITS
    residual_head = residual_ptr + head * HALF * HALF
    out_rows = stored.codes + (place * KV_HEADS + head) * (BITS // UNIT)

    column_2 = tl.arange(0, BLOCK_2)
    in_2 = column_2 < HALF
    size = tl.zeros((BLOCK_M,), dtype=tl.float32)
    second = tl.zeros((BLOCK_M, BLOCK_2), dtype=tl.float32)
    for start in range(0, HALF, BLOCK_1):
        column = start + tl.arange(0, BLOCK_1)
        inside = column < HALF
        first = tl.zeros((BLOCK_M, BLOCK_1), dtype=tl.float32)
        first = _project(first, x_rows, valid, weight_head + column, inside, DIM, BITS, BLOCK_D)
        bias = tl.load(bias_head + column, mask=inside, other=0).to(tl.float32)
        first += bias[None, :]
        # Columns beyond the half are 0 and add nothing to the size.
        size += tl.sum(tl.abs(first), axis=1)
        positive = first > 0
        _store_bits(positive, out_rows + start // UNIT, valid, inside, BLOCK_M, BLOCK_1, UNIT)
        residual = tl.load(
            residual_head + column[:, None] * HALF + column_2[None, :],
            mask=inside[:, None] & in_2[None, :],
            other=0,
        )
        # Signs are exact in every dtype.
        signs = tl.where(positive, 1.0, -1.0).to(residual.dtype)
        second = tl.dot(signs, residual, acc=second, input_precision="ieee")

    second = _project(
        second, x_rows, valid, weight_head + HALF + column_2, in_2, DIM, BITS, BLOCK_D
    )
    bias = tl.load(bias_head + HALF + column_2, mask=in_2, other=0).to(tl.float32)
    second += bias[None, :]
    _store_bits(second > 0, out_rows + HALF // UNIT, valid, in_2, BLOCK_M, BLOCK_2, UNIT)
    if stored.scales is not None:
        size = size / HALF
        store_scales(stored, place, valid, size, head, KV_HEADS)


def launch_residual(encoder, k, codes, slots, scales, tally) -> None:
    """`AsymmetricEncoder.encode_keys` in two stages, of checked arguments.

    Raises
    ------
    ValueError
        When k's last dimension is not contiguous, its dtype not the weights', or codes have more
        than 1024 bits.
    """
    expect_rows(encoder.key_weight, k=k)
    expect_bits(encoder.bits)
    tokens, dim, half = len(k), encoder.head_dim, encoder.bits // 2
    if tokens == 0:
        return
    # The second half may begin in the middle of a word. Little-endian: its low half comes first.
    unit = WORD_BITS if half % WORD_BITS == 0 else WORD_BITS // 2
    units = codes if unit == WORD_BITS else codes.view(torch.int16)
    wide = k.dtype != torch.float32
    block_2 = triton.next_power_of_2(half)
    # A tile of second-stage projections within 32 KiB, one of their weights within 16 KiB;
    # float32 products keep their operands in registers: smaller tiles avoid spills.
    block_m = min(64, 8192 // block_2, max(16, triton.next_power_of_2(tokens))) if wide else 16
    _residual_kernel[(triton.cdiv(tokens, block_m), encoder.num_kv_heads)](
        k,
        encoder.key_weight,
        encoder.key_bias,
        encoder.residual_weight,
        Stored(units, slots, scales, encoder.scale_step, tally),
        tokens,
        k.stride(0),
        k.stride(1),
        KV_HEADS=encoder.num_kv_heads,
        DIM=dim,
        BITS=encoder.bits,
        UNIT=unit,
        BLOCK_M=block_m,
        BLOCK_1=min(block_2, 64 if wide else 32),
        BLOCK_2=block_2,
        BLOCK_D=max(16, min(64 if wide else 32, 8192 // block_2, triton.next_power_of_2(dim))),
        num_warps=8 if wide and block_2 > 64 else 4,
    )
