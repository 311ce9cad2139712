"""Triton kernels of `sum_values`. Addresses are int64: row and slot numbers are."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["parts"])  # of every length
def _sum_kernel(
    v_ptr,
    table_ptr,
    rows_ptr,
    seq_lens_ptr,
    partial_ptr,
    table_stride,
    width,
    parts,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
    PART: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: the sum of some columns over one part of one row."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    column = tl.program_id(2) * CHUNK + tl.arange(0, CHUNK)
    length = tl.minimum(tl.load(seq_lens_ptr + row), width).to(tl.int32)
    begin = part * PART
    end = tl.minimum(begin + PART, length)
    if begin >= end:
        return
    slots_ptr = table_ptr + tl.load(rows_ptr + row).to(tl.int64) * table_stride
    within = column < COLUMNS
    total = tl.zeros((CHUNK,), dtype=tl.float32)
    for start in range(begin, end, BLOCK):
        token = start + tl.arange(0, BLOCK)
        valid = token < end
        slot = tl.load(slots_ptr + token, mask=valid, other=0).to(tl.int64)
        values = tl.load(
            v_ptr + slot[:, None] * COLUMNS + column[None, :],
            mask=valid[:, None] & within[None, :],
            other=0.0,
        )
        total += tl.sum(values.to(tl.float32), axis=0)
    tl.store(partial_ptr + (row * parts + part) * COLUMNS + column, total, mask=within)


@triton.jit(do_not_specialize=["parts"])
def _add_kernel(
    rows_ptr,
    seq_lens_ptr,
    partial_ptr,
    sums_ptr,
    width,
    parts,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
    PART: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: the sum of some columns over the parts of one row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    used = tl.cdiv(tl.minimum(tl.load(seq_lens_ptr + row), width).to(tl.int32), PART)
    within = column < COLUMNS
    total = tl.zeros((CHUNK,), dtype=tl.float32)
    for start in range(0, used, BLOCK):
        part = start + tl.arange(0, BLOCK)
        partial = tl.load(
            partial_ptr + (row * parts + part)[:, None] * COLUMNS + column[None, :],
            mask=(part < used)[:, None] & within[None, :],
            other=0.0,
        )
        total += tl.sum(partial, axis=0)
    request = tl.load(rows_ptr + row).to(tl.int64)
    tl.store(sums_ptr + request * COLUMNS + column, total, mask=within)
