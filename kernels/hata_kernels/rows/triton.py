"""Triton's work on the rows of a step; arguments are checked.

One launch copies, of every row only its tokens. One compares slots, and one makes the groups.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .groups import CHUNK
from .naive import SHARE_UNIT

# Slots that a program copies.
COPY_CHUNK = 4096
# Chunks of all rows that a program of the second launch takes in at a time.
PARTS = 16


@triton.jit
def _copy_rows_kernel(
    table_ptr,
    rows_ptr,
    seq_lens_ptr,
    token_slots_ptr,
    lengths_ptr,
    budgets_ptr,
    table_stride,
    width,
    most,
    SHARES: tl.constexpr,
    COUNT: tl.constexpr,
    UNIT: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """One program: a chunk of one row; the first one also has the row's length and budgets."""
    row = tl.program_id(0).to(tl.int64)
    start = tl.program_id(1) * CHUNK
    length = tl.load(seq_lens_ptr + row).to(tl.int64)
    if start >= length:
        return
    request = tl.load(rows_ptr + row).to(tl.int64)
    place = start + tl.arange(0, CHUNK)
    valid = place < length
    slots = tl.load(table_ptr + request * table_stride + place, mask=valid, other=0)
    tl.store(token_slots_ptr + row * width + place, slots, mask=valid)
    if start == 0:
        tl.store(lengths_ptr + row, length.to(tl.int32))
        for number in tl.static_range(COUNT):
            share = (length * SHARES[3 * number] + (UNIT - 1)) // UNIT
            share = tl.minimum(tl.maximum(share, SHARES[3 * number + 1]), SHARES[3 * number + 2])
            budget = tl.minimum(length, share).to(tl.int32)
            tl.store(budgets_ptr + number * most + row, budget)


def copy_rows_triton(
    req_to_token, rows, seq_lens, longest, shares, token_slots, lengths, budgets
) -> None:
    """`copy_rows` on a GPU, which trusts lengths to be at most ``longest``: it sizes the launch."""
    if rows.shape[0] == 0:
        return
    _copy_rows_kernel[(rows.shape[0], triton.cdiv(longest, COPY_CHUNK))](
        req_to_token,
        rows,
        seq_lens,
        token_slots,
        lengths,
        budgets,
        req_to_token.stride(0),
        token_slots.stride(0),
        budgets.stride(0) if shares else 0,
        SHARES=tuple(number for share in shares for number in share),
        COUNT=len(shares),
        UNIT=SHARE_UNIT,
        CHUNK=COPY_CHUNK,
        num_warps=4,
    )


@triton.jit
def _same_kernel(
    token_slots_ptr,
    lengths_ptr,
    leaders_ptr,
    same_ptr,
    stride,
    parts,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """One program: where in a chunk of a row its slots stop being its leader's."""
    row = tl.program_id(0)
    part = tl.program_id(1)
    start = part * CHUNK
    length = tl.load(lengths_ptr + row)
    if start >= length:
        return
    slots_row = token_slots_ptr + row.to(tl.int64) * stride
    middle = length // 2
    other = tl.arange(0, ROWS)
    reaches = tl.load(lengths_ptr + other, mask=other < row, other=0) > middle
    slots = tl.load(token_slots_ptr + other.to(tl.int64) * stride + middle, mask=reaches, other=0)
    equal = reaches & (slots == tl.load(slots_row + middle))
    leader = tl.min(tl.where(equal, other, row), axis=0)
    if part == 0:
        tl.store(leaders_ptr + row, leader)
    shorter = tl.minimum(length, tl.load(lengths_ptr + leader))
    if leader == row:  # nothing to compare
        tl.store(same_ptr + row * parts + part, tl.minimum(shorter, start + CHUNK))
        return
    place = start + tl.arange(0, CHUNK)
    inside = place < shorter
    mine = tl.load(slots_row + place, mask=inside, other=0)
    leader_row = token_slots_ptr + leader.to(tl.int64) * stride
    equal = inside & (mine == tl.load(leader_row + place, mask=inside, other=0))
    end = tl.min(tl.where(equal, start + CHUNK, place), axis=0)
    tl.store(same_ptr + row * parts + part, end)


# As contexts grow, `used` does; 1 and multiples of 16 would be compiled by a request.
@triton.jit(do_not_specialize=["used"])
def _groups_kernel(
    lengths_ptr,
    leaders_ptr,
    same_ptr,
    shared_ptr,
    members_ptr,
    sizes_ptr,
    extents_ptr,
    rows,
    stride,
    parts,
    used,
    unit,
    least,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    PARTS: tl.constexpr,
):
    """One program: the group of one leader, and of all rows that follow it what they share."""
    leader = tl.program_id(0)
    row = tl.arange(0, ROWS)
    follows = tl.load(leaders_ptr + row, mask=row < rows, other=-1) == leader
    length = tl.load(lengths_ptr + row, mask=follows, other=0)
    same = length
    for first in range(0, used, PARTS):
        end = (first + 1 + tl.arange(0, PARTS)) * CHUNK
        here = end[None, :] - CHUNK < length[:, None]
        place = row.to(tl.int64)[:, None] * parts + first + tl.arange(0, PARTS)[None, :]
        found = tl.load(same_ptr + place, mask=here, other=0)
        # A chunk that is the same to its end says nothing of what follows.
        found = tl.where(here & (found < end[None, :]), found, length[:, None])
        same = tl.minimum(same, tl.min(found, axis=1))
    same = same // unit
    # The most units that `least` rows share, bit by bit.
    extent = 0
    step = 1 << 30
    while step > 0:
        enough = tl.sum((same >= extent + step).to(tl.int32), axis=0) >= least
        extent += tl.where(enough, step, 0)
        step = step >> 1
    same = tl.minimum(same, extent) * unit
    member = same > 0
    place = tl.cumsum(member.to(tl.int32), axis=0) - 1
    tl.store(shared_ptr + row, same, mask=follows)
    tl.store(members_ptr + leader.to(tl.int64) * stride + place, row, mask=member)
    tl.store(sizes_ptr + leader, tl.sum(member.to(tl.int32), axis=0))
    tl.store(extents_ptr + leader, extent * unit)


def group_rows_triton(token_slots, lengths, longest, groups) -> None:
    """`group_rows` on a GPU, which trusts lengths to be at most ``longest``: it sizes a launch."""
    rows = token_slots.shape[0]
    if rows == 0:
        return
    parts, used = groups.same.shape[1], triton.cdiv(longest, CHUNK)
    power = {"ROWS": triton.next_power_of_2(rows), "CHUNK": CHUNK}
    scratch = (groups.leaders, groups.same)
    _same_kernel[(rows, used)](
        token_slots, lengths, *scratch, token_slots.stride(0), parts, **power, num_warps=4
    )
    _groups_kernel[(rows,)](
        lengths,
        *scratch,
        groups.shared,
        groups.members,
        groups.sizes,
        groups.extents,
        rows,
        groups.members.stride(0),
        parts,
        used,
        groups.unit,
        groups.least,
        **power,
        PARTS=PARTS,
        num_warps=4,
    )
