"""Triton kernels of `attend_dense`: what every row has to itself, and the merge of parts.

This launch and the one for prefixes that rows share (`dense_prefix`) divide their work alike: the
blocks of tokens that there are to read, of one row or group after the other, are a line of which
every program takes a run of the same length. A run may begin and end anywhere, so all programs end
together, whatever the lengths are. Every program finds its run from the vectors of lengths, and the
first one of a row writes into the plan where the merge finds the row's parts.

Addresses are int64 throughout: row, head and slot numbers are, before they are multiplied.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..chain import start_next, wait_for_last


@triton.jit
def attend_blocks(
    q,
    peak,
    total,
    acc,
    k_ptr,
    v_ptr,
    slots_ptr,
    begin,
    end,
    reach,
    head,
    scale,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Attend the tokens from ``begin`` on to ``end``; a query those before its ``reach`` only.

    Without MASKED these are whole blocks that all queries reach. ``scale`` includes log2(e).
    """
    d = tl.arange(0, q.shape[1])
    column = begin + tl.arange(0, BLOCK)
    slot = tl.load(slots_ptr + column, mask=column < end, other=0)
    for start in range(begin, end, BLOCK):
        column = start + tl.arange(0, BLOCK)
        valid = column < end if MASKED else column >= 0
        place = (slot.to(tl.int64) * HEADS + head) * DIM
        # Slots are loaded a block ahead, so that K and V need not wait for them.
        slot = tl.load(slots_ptr + column + BLOCK, mask=column + BLOCK < end, other=0)
        here = valid[:, None] & (d < DIM)[None, :]
        k = tl.load(k_ptr + place[:, None] + d[None, :], mask=here, other=0.0)
        v = tl.load(v_ptr + place[:, None] + d[None, :], mask=here, other=0.0)
        logits = tl.dot(q, tl.trans(k))
        if MASKED:
            logits = tl.where(column[None, :] < reach[:, None], logits, -float("inf"))
        # The scale is applied with the subtraction, in one instruction.
        higher = tl.maximum(peak, tl.max(logits, axis=1) * scale)
        # A query that has reached no token yet has no peak: its weights and sums stay 0.
        level = tl.where(higher == -float("inf"), 0.0, higher) if MASKED else higher
        weights = tl.exp2(logits * scale - level[:, None])
        fade = tl.exp2(peak - level)
        total = total * fade + tl.sum(weights, axis=1)
        acc = tl.dot(weights.to(q.dtype), v, acc * fade[:, None])
        peak = higher
    return peak, total, acc


@triton.jit(do_not_specialize=["rows", "first_place"])  # of every batch size captured
def _tail_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    token_slots_ptr,
    seq_lens_ptr,
    shared_ptr,
    plan_ptr,
    partial_ptr,
    lse_ptr,
    q_stride,
    slots_stride,
    longest,
    rows,
    first_place,
    scale,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    DIM: tl.constexpr,
    DIM_POW2: tl.constexpr,
    ROWS_POW2: tl.constexpr,
    GROUPED: tl.constexpr,
    BLOCK: tl.constexpr,
    LEAST: tl.constexpr,
    PDL: tl.constexpr,
):
    """Attend a run of what no group shares, all tokens without GROUPED: of a KV head."""
    program = tl.program_id(0)
    head = tl.program_id(1)
    row = tl.arange(0, ROWS_POW2)
    length = tl.load(seq_lens_ptr + row, mask=row < rows, other=0).to(tl.int32)
    length = tl.minimum(length, longest)
    if GROUPED:
        shared = tl.load(shared_ptr + row, mask=row < rows, other=0)
    else:
        shared = tl.zeros_like(length)
    blocks = tl.cdiv(tl.maximum(length - shared, 0), BLOCK)
    ends = tl.cumsum(blocks, axis=0)
    line = tl.sum(blocks, axis=0)
    run = tl.maximum(tl.cdiv(line, tl.num_programs(0)), LEAST)
    position = program * run
    end = tl.minimum(position + run, line)
    member = tl.arange(0, GROUP_PAD)
    d = tl.arange(0, DIM_POW2)
    mine = member < GROUP
    keep = mine[:, None] & (d < DIM)[None, :]
    q_head = head * GROUP + member
    wait_for_last(PDL)
    start_next(PDL)
    while position < end:
        batch = tl.sum((ends <= position).to(tl.int32), axis=0)
        own = row == batch
        first = position - tl.sum(tl.where(row < batch, blocks, 0), axis=0)
        left = tl.sum(tl.where(own, blocks, 0), axis=0) - first
        last = tl.sum(tl.where(own, length, 0), axis=0)
        begin = tl.sum(tl.where(own, shared, 0), axis=0) + first * BLOCK
        if (first == 0) & (head == 0):
            tl.store(plan_ptr + batch * 4 + 2, first_place + program + batch)
            tl.store(plan_ptr + batch * 4 + 3, (position + left - 1) // run - program + 1)
        left = tl.minimum(left, end - position)
        stop = tl.minimum(begin + left * BLOCK, last)
        q_place = batch.to(tl.int64) * q_stride + q_head * DIM
        q = tl.load(q_ptr + q_place[:, None] + d[None, :], mask=keep, other=0.0)
        peak, total, acc = attend_blocks(
            q,
            tl.full((GROUP_PAD,), -float("inf"), dtype=tl.float32),
            tl.zeros((GROUP_PAD,), dtype=tl.float32),
            tl.zeros((GROUP_PAD, DIM_POW2), dtype=tl.float32),
            *(k_ptr, v_ptr, token_slots_ptr + batch.to(tl.int64) * slots_stride),
            *(begin, stop, tl.full((GROUP_PAD,), 0, tl.int32) + stop, head),
            *(scale, HEADS, DIM, True, BLOCK),
        )
        # Unlike any other part, the next has a higher row or program, or both.
        place = (first_place + program + batch).to(tl.int64) * (HEADS * GROUP) + q_head
        acc = acc * (1 / total)[:, None]
        tl.store(partial_ptr + place[:, None] * DIM + d[None, :], acc, mask=keep)
        tl.store(lse_ptr + place, peak + tl.log2(total), mask=mine)
        position += left


@triton.jit
def _dense_merge_kernel(
    seq_lens_ptr,
    shared_ptr,
    plan_ptr,
    partial_ptr,
    lse_ptr,
    out_ptr,
    Q_HEADS: tl.constexpr,
    MEMBERS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_POW2: tl.constexpr,
    GROUPED: tl.constexpr,
    PARTS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Merge the parts of one query head by their log-sum-exp, PARTS at a time."""
    q_head = tl.program_id(0).to(tl.int64)
    row = q_head // Q_HEADS
    plan = plan_ptr + row * 4
    wait_for_last(PDL)
    start_next(PDL)
    shared = tl.load(shared_ptr + row) if GROUPED else 0
    # What a row has not is not in its plan: that is from an earlier call.
    prefixes = tl.load(plan + 1, mask=shared > 0, other=0) if GROUPED else 0
    prefix_place = tl.load(plan) if GROUPED else 0
    tails = tl.load(plan + 3, mask=tl.load(seq_lens_ptr + row) > shared, other=0)
    tail_place = tl.load(plan + 2) - prefixes
    d = tl.arange(0, DIM_POW2)
    peak = -float("inf")
    total = 0.0
    acc = tl.zeros((DIM_POW2,), dtype=tl.float32)
    for start in range(0, prefixes + tails, PARTS):
        part = start + tl.arange(0, PARTS)
        used = part < prefixes + tails
        place = tl.where(part < prefixes, prefix_place + part * MEMBERS, tail_place + part)
        place = place.to(tl.int64) * Q_HEADS + q_head % Q_HEADS
        lse = tl.load(lse_ptr + place, mask=used, other=-float("inf"))
        partial = tl.load(
            partial_ptr + place[:, None] * DIM + d[None, :],
            mask=used[:, None] & (d < DIM)[None, :],
            other=0,
        )
        higher = tl.maximum(peak, tl.max(lse, axis=0))
        weights = tl.exp2(lse - higher)
        fade = tl.exp2(peak - higher)
        total = total * fade + tl.sum(weights, axis=0)
        acc = acc * fade + tl.sum(partial * weights[:, None], axis=0)
        peak = higher
    merged = (acc / total).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + q_head * DIM + d, merged, mask=d < DIM)
