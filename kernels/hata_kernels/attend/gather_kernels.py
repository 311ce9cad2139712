"""Triton kernels of `attend`: attend over parts of every selection, then merge the parts.

Addresses are int64 throughout: row, head and slot numbers are, before they are multiplied.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .. import tally
from ..chain import start_next, wait_for_last

STEPS = tl.constexpr(tally.STEPS)
CONTEXT, ATTENDED = tl.constexpr(tally.CONTEXT), tl.constexpr(tally.ATTENDED)


@triton.jit
def _count(seq_lens_ptr, budgets_ptr, batch, k_max):
    """Slots that a request attends; never more than its rows hold, whatever the lengths say."""
    length = tl.load(seq_lens_ptr + batch).to(tl.int32)
    return tl.minimum(tl.minimum(length, tl.load(budgets_ptr + batch)), k_max)


@triton.jit
def _count_attended(tally_ptr, slots_row, seq_lens_ptr, batch, count):
    """Add one request of a launch, unless it is padding; see `hata_kernels.tally`."""
    if tl.load(slots_row) > 0:
        if batch == 0:
            tl.atomic_add(tally_ptr + STEPS, 1)
        tl.atomic_add(tally_ptr + CONTEXT, tl.load(seq_lens_ptr + batch).to(tl.int64))
        tl.atomic_add(tally_ptr + ATTENDED, count.to(tl.int64))


@triton.jit
def _part_size(count, parts, BLOCK: tl.constexpr):
    """Slots of a part: those that a row attends, not those that it may, are split evenly."""
    return tl.cdiv(tl.cdiv(count, BLOCK), parts) * BLOCK


@triton.jit
def _part_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    slots_ptr,
    seq_lens_ptr,
    budgets_ptr,
    out_ptr,
    partial_ptr,
    lse_ptr,
    tally_ptr,
    q_stride,
    k_max,
    parts,
    scale,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_POW2: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Attend G query heads, padded to ROWS, over one part of one row.

    ``scale`` includes log2(e). With SPLIT the result and its base-2 log-sum-exp go to the partial
    results.
    """
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    batch = row // HEADS
    head = row % HEADS
    count = _count(seq_lens_ptr, budgets_ptr, batch, k_max)
    part = _part_size(count, parts, BLOCK)
    begin = split * part
    end = tl.minimum(begin + part, count)
    wait_for_last(PDL)
    start_next(PDL)
    if begin >= end:
        return
    if tally_ptr is not None:  # noqa: SIM102 - decided when it is compiled
        if (split == 0) & (head == 0):
            _count_attended(tally_ptr, slots_ptr + row * k_max, seq_lens_ptr, batch, count)
    member = tl.arange(0, ROWS)
    d = tl.arange(0, DIM_POW2)
    in_group = member < GROUP
    in_dim = d < DIM
    keep = in_group[:, None] & in_dim[None, :]
    q_place = batch * q_stride + (head * GROUP + member) * DIM
    q = tl.load(q_ptr + q_place[:, None] + d[None, :], mask=keep, other=0)
    peak = tl.full((ROWS,), -float("inf"), dtype=tl.float32)
    total = tl.zeros((ROWS,), dtype=tl.float32)
    acc = tl.zeros((ROWS, DIM_POW2), dtype=tl.float32)
    # The first block holds a slot within the count, so the peak is finite after it.
    for start in range(begin, end, BLOCK):
        column = start + tl.arange(0, BLOCK)
        valid = column < end
        slot = tl.load(slots_ptr + row * k_max + column, mask=valid, other=0).to(tl.int64)
        # A -1 here means that fewer were selected than counted: the reserved slot 0 gives a wrong
        # answer for that row, a negative one would read outside the pool.
        place = (tl.maximum(slot, 0) * HEADS + head) * DIM
        here = valid[:, None] & in_dim[None, :]
        k = tl.load(k_ptr + place[:, None] + d[None, :], mask=here, other=0.0)
        v = tl.load(v_ptr + place[:, None] + d[None, :], mask=here, other=0.0)
        logits = tl.dot(q, tl.trans(k)) * scale
        logits = tl.where(valid[None, :], logits, -float("inf"))
        higher = tl.maximum(peak, tl.max(logits, axis=1))
        weights = tl.exp2(logits - higher[:, None])
        fade = tl.exp2(peak - higher)
        total = total * fade + tl.sum(weights, axis=1)
        acc = acc * fade[:, None] + tl.dot(weights.to(q.dtype), v)
        peak = higher
    acc = acc * (1 / total)[:, None]
    if SPLIT:
        place = (row * parts + split) * GROUP + member
        tl.store(partial_ptr + place[:, None] * DIM + d[None, :], acc, mask=keep)
        tl.store(lse_ptr + place, peak + tl.log2(total), mask=in_group)
    else:
        place = row * GROUP + member
        tl.store(
            out_ptr + place[:, None] * DIM + d[None, :], acc.to(out_ptr.dtype.element_ty), mask=keep
        )


@triton.jit
def _merge_kernel(
    partial_ptr,
    lse_ptr,
    seq_lens_ptr,
    budgets_ptr,
    out_ptr,
    k_max,
    parts,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    DIM_POW2: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS_POW2: tl.constexpr,
    PDL: tl.constexpr,
):
    """Merge the parts of one query head by their log-sum-exp; parts without work are not read."""
    q_head = tl.program_id(0).to(tl.int64)
    row = q_head // GROUP
    count = _count(seq_lens_ptr, budgets_ptr, row // HEADS, k_max)
    wait_for_last(PDL)
    start_next(PDL)
    split = tl.arange(0, PARTS_POW2)
    used = split * _part_size(count, parts, BLOCK) < count
    d = tl.arange(0, DIM_POW2)
    in_dim = d < DIM
    place = (row * parts + split) * GROUP + q_head % GROUP
    lse = tl.load(lse_ptr + place, mask=used, other=-float("inf"))
    weights = tl.exp2(lse - tl.max(lse, axis=0))
    partial = tl.load(
        partial_ptr + place[:, None] * DIM + d[None, :],
        mask=used[:, None] & in_dim[None, :],
        other=0,
    )
    merged = tl.sum(partial * weights[:, None], axis=0) / tl.sum(weights, axis=0)
    tl.store(out_ptr + q_head * DIM + d, merged.to(out_ptr.dtype.element_ty), mask=in_dim)
