"""Triton kernels of `attend`: attend over parts of every selection, then merge the parts.

Addresses are int64 throughout: row, head and slot numbers are, before they are multiplied.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .. import tally
from ..chain import start_next, wait_for_last
from .left_out import RATIOS as LEFT_OUT_RATIOS

STEPS = tl.constexpr(tally.STEPS)
CONTEXT, ATTENDED = tl.constexpr(tally.CONTEXT), tl.constexpr(tally.ATTENDED)
RATIOS = tl.constexpr(LEFT_OUT_RATIOS)


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
def _sum_place(rows_ptr, batch, head, d, HEADS: tl.constexpr, DIM: tl.constexpr):
    """Where the sum of a request's values lies."""
    request = tl.load(rows_ptr + batch).to(tl.int64)
    return (request * HEADS + head) * DIM + d


@triton.jit
def _mix(out, selected, total, weights_ptr, heads, length, count):
    """Mix the mean of the values left out into attention; see `hata_kernels.attend.left_out`.

    ``out`` and ``selected``, the mean of the selected values, are of shapes that go together, as
    are ``out`` and the weights of query heads ``heads``. Nothing changes where nothing is left out.
    """
    place = tl.minimum(tl.log2(length.to(tl.float32) / count.to(tl.float32)), RATIOS - 1)
    low = tl.minimum(place.to(tl.int32), RATIOS - 2)
    first = tl.load(weights_ptr + heads * RATIOS + low)
    weight = first + (tl.load(weights_ptr + heads * RATIOS + low + 1) - first) * (place - low)
    mean = (total - selected * count.to(tl.float32)) / tl.maximum(length - count, 1).to(tl.float32)
    return tl.where(length > count, out + weight * (mean - out), out)


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
    sums_ptr,
    requests_ptr,
    weights_ptr,
    q_stride,
    k_max,
    parts,
    scale,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    KEPT: tl.constexpr,
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

    With sums, one head more is kept. Its query is zero, as that of all padding: it weighs all
    tokens alike, so that its attention is the mean of the selected values.
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
    if sums_ptr is not None:
        # The newest token is the last that is selected. One program per row adds it.
        newest = tl.load(slots_ptr + row * k_max + count - 1).to(tl.int64)
        sum_place = _sum_place(requests_ptr, batch, head, d, HEADS, DIM)
        own = in_dim & (end == count) & (tl.load(slots_ptr + row * k_max) > 0)
        whole = tl.load(sums_ptr + sum_place, mask=own, other=0.0)
        whole += tl.load(
            v_ptr + (tl.maximum(newest, 0) * HEADS + head) * DIM + d, mask=own, other=0.0
        ).to(tl.float32)
        # Threads that hold the same columns all load the sum: none may find the one stored here.
        tl.debug_barrier()
        tl.store(sums_ptr + sum_place, whole, mask=own)
    if SPLIT:
        place = (row * parts + split) * KEPT + member
        kept = member < KEPT
        partial = kept[:, None] & in_dim[None, :]
        tl.store(partial_ptr + place[:, None] * DIM + d[None, :], acc, mask=partial)
        tl.store(lse_ptr + place, peak + tl.log2(total), mask=kept)
    else:
        if sums_ptr is not None:
            selected = tl.sum(tl.where(member[:, None] == GROUP, acc, 0.0), axis=0)
            length = tl.load(seq_lens_ptr + batch).to(tl.int32)
            heads = head * GROUP + tl.where(in_group, member, 0)[:, None]
            acc = _mix(acc, selected[None, :], whole[None, :], weights_ptr, heads, length, count)
        place = row * GROUP + member
        tl.store(
            out_ptr + place[:, None] * DIM + d[None, :], acc.to(out_ptr.dtype.element_ty), mask=keep
        )


@triton.jit
def _merge(partial_ptr, lse_ptr, place, used, d, in_dim, DIM: tl.constexpr):
    """Merge the parts at ``place`` by their log-sum-exp."""
    lse = tl.load(lse_ptr + place, mask=used, other=-float("inf"))
    weights = tl.exp2(lse - tl.max(lse, axis=0))
    partial = tl.load(
        partial_ptr + place[:, None] * DIM + d[None, :],
        mask=used[:, None] & in_dim[None, :],
        other=0,
    )
    return tl.sum(partial * weights[:, None], axis=0) / tl.sum(weights, axis=0)


@triton.jit
def _merge_kernel(
    partial_ptr,
    lse_ptr,
    seq_lens_ptr,
    budgets_ptr,
    out_ptr,
    sums_ptr,
    requests_ptr,
    weights_ptr,
    k_max,
    parts,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    KEPT: tl.constexpr,
    DIM: tl.constexpr,
    DIM_POW2: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS_POW2: tl.constexpr,
    PDL: tl.constexpr,
):
    """Merge the parts of one query head; parts without work are not read."""
    q_head = tl.program_id(0).to(tl.int64)
    row = q_head // GROUP
    count = _count(seq_lens_ptr, budgets_ptr, row // HEADS, k_max)
    wait_for_last(PDL)
    start_next(PDL)
    split = tl.arange(0, PARTS_POW2)
    used = split * _part_size(count, parts, BLOCK) < count
    d = tl.arange(0, DIM_POW2)
    in_dim = d < DIM
    place = (row * parts + split) * KEPT + q_head % GROUP
    merged = _merge(partial_ptr, lse_ptr, place, used, d, in_dim, DIM)
    if sums_ptr is not None:
        place = (row * parts + split) * KEPT + GROUP
        selected = _merge(partial_ptr, lse_ptr, place, used, d, in_dim, DIM)
        batch, head = row // HEADS, row % HEADS
        sum_place = _sum_place(requests_ptr, batch, head, d, HEADS, DIM)
        whole = tl.load(sums_ptr + sum_place, mask=in_dim, other=0.0)
        length = tl.load(seq_lens_ptr + batch).to(tl.int32)
        q_head_of_request = head * GROUP + q_head % GROUP
        merged = _mix(merged, selected, whole, weights_ptr, q_head_of_request, length, count)
    tl.store(out_ptr + q_head * DIM + d, merged.to(out_ptr.dtype.element_ty), mask=in_dim)
