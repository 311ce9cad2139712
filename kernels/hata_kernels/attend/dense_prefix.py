"""Triton kernel of `attend_dense` for the prefixes that rows share.

See `dense_kernels` for how the work is divided.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..chain import start_next, wait_for_last
from .dense_kernels import attend_blocks


@triton.jit
def _prefix_line(
    size, extent, units, MEMBERS: tl.constexpr, BLOCK: tl.constexpr, LEAST: tl.constexpr
):
    """Blocks of a program's run, and of a chunk of every leader's group on the line.

    Chunks of a group read the same K and V, which come from memory once if they are read at the
    same time: then the chunks begin whole runs apart. That a group's share of the programs is
    rounded down to a multiple of its chunks makes runs longer, so it is done up to a fifth. All
    blocks fit into ``units`` runs: a chunk that is rounded up has ceil(blocks / run) <= share runs.
    """
    chunks = tl.cdiv(size, MEMBERS)
    blocks = tl.where(size > 0, tl.cdiv(extent, BLOCK), 0)
    work = tl.maximum(tl.sum(chunks * blocks, axis=0), 1)
    share = blocks * units // work
    aligned = (chunks > 1) & (5 * blocks * units <= 6 * share * work)
    fits = tl.where(aligned, tl.cdiv(blocks, tl.maximum(share, 1)), 0)
    run = tl.maximum(tl.maximum(tl.cdiv(work, units), tl.max(fits, axis=0)), LEAST)
    return run, tl.where(aligned, tl.cdiv(blocks, run) * run, blocks)


@triton.jit(do_not_specialize=["rows"])  # of every batch size captured
def _prefix_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    token_slots_ptr,
    shared_ptr,
    members_ptr,
    sizes_ptr,
    extents_ptr,
    plan_ptr,
    partial_ptr,
    lse_ptr,
    q_stride,
    slots_stride,
    members_stride,
    rows,
    scale,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_POW2: tl.constexpr,
    MEMBERS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_POW2: tl.constexpr,
    ROWS_POW2: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK: tl.constexpr,
    LEAST: tl.constexpr,
    PDL: tl.constexpr,
):
    """Attend a run of the prefixes that groups share: of a KV head, for MEMBERS rows at a time."""
    program = tl.program_id(0)
    head = tl.program_id(1)
    row = tl.arange(0, ROWS_POW2)
    size = tl.load(sizes_ptr + row, mask=row < rows, other=0)
    extent = tl.load(extents_ptr + row, mask=row < rows, other=0)
    run, length = _prefix_line(size, extent, tl.num_programs(0), MEMBERS, BLOCK, LEAST)
    width = tl.cdiv(size, MEMBERS) * length
    ends = tl.cumsum(width, axis=0)
    position = program * run
    end = tl.minimum(position + run, tl.sum(width, axis=0))
    query = tl.arange(0, MEMBERS * GROUP_POW2)
    d = tl.arange(0, DIM_POW2)
    wait_for_last(PDL)
    start_next(PDL)
    while position < end:
        before = ends <= position
        leader = tl.sum(before.to(tl.int32), axis=0)
        first = position - tl.sum(tl.where(before, width, 0), axis=0)
        in_chunk = tl.sum(tl.where(row == leader, length, 0), axis=0)
        chunk = first // in_chunk
        first -= chunk * in_chunk
        blocks = tl.minimum(in_chunk - first, end - position)
        member = chunk * MEMBERS + query // GROUP_POW2
        mine = (member < tl.load(sizes_ptr + leader)) & (query % GROUP_POW2 < GROUP)
        members_row = members_ptr + leader.to(tl.int64) * members_stride
        batch = tl.load(members_row + member, mask=mine, other=0).to(tl.int64)
        shared = tl.load(shared_ptr + batch, mask=mine, other=0)
        rank = tl.sum(tl.where(row < leader, size, 0), axis=0) + member
        if (first == 0) & (head == 0):
            parts = (position + tl.cdiv(shared, BLOCK) - 1) // run - program + 1
            told = mine & (query % GROUP_POW2 == 0)
            tl.store(plan_ptr + batch * 4, program * MEMBERS + rank, mask=told)
            tl.store(plan_ptr + batch * 4 + 1, parts, mask=told)
        begin = first * BLOCK
        stop = tl.minimum(begin + blocks * BLOCK, tl.max(shared, axis=0))
        if begin < stop:
            keep = mine[:, None] & (d < DIM)[None, :]
            q_head = head * GROUP + query % GROUP_POW2
            q_place = batch * q_stride + q_head * DIM
            q = tl.load(q_ptr + q_place[:, None] + d[None, :], mask=keep, other=0.0)
            peak = tl.full((MEMBERS * GROUP_POW2,), -float("inf"), dtype=tl.float32)
            total = tl.zeros((MEMBERS * GROUP_POW2,), dtype=tl.float32)
            acc = tl.zeros((MEMBERS * GROUP_POW2, DIM_POW2), dtype=tl.float32)
            slots_row = token_slots_ptr + leader.to(tl.int64) * slots_stride
            start = begin
            if WHOLE:
                # Whole blocks that all members share need no masks: as a rule, all blocks.
                all_share = tl.min(tl.where(mine, shared, stop), axis=0)
                start += tl.maximum(tl.minimum(all_share, stop) - begin, 0) // BLOCK * BLOCK
                peak, total, acc = attend_blocks(
                    *(q, peak, total, acc, k_ptr, v_ptr, slots_row, begin, start, shared, head),
                    *(scale, HEADS, DIM, False, BLOCK),
                )
            peak, total, acc = attend_blocks(
                *(q, peak, total, acc, k_ptr, v_ptr, slots_row, start, stop),
                *(tl.minimum(shared, stop), head, scale, HEADS, DIM, True, BLOCK),
            )
            mine = mine & (shared > begin)
            place = (program * MEMBERS + rank).to(tl.int64) * (HEADS * GROUP) + q_head
            acc = acc * (1 / total)[:, None]
            keep = mine[:, None] & (d < DIM)[None, :]
            tl.store(partial_ptr + place[:, None] * DIM + d[None, :], acc, mask=keep)
            tl.store(lse_ptr + place, peak + tl.log2(total), mask=mine)
        position += blocks
