"""Between the floor and the filter: score the tiles that many requests share, once for all."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ..chain import start_next, wait_for_last
from .distance import DISTANCES, add_nearer, bucket_of
from .filter import append, count_kept
from .score import scaled

# Tiles of a program at a time, at most: what it loads of its members serves all of them.
SPAN = 2
# Stages of the loads of codes: those of the next two tiles are under way.
STAGES = 3
# Warps of a launch: 16 on each of an H100's 132 multiprocessors.
WARPS = 16 * 132
# Of a thread, so that so many fit.
REGISTERS = 128


def shared_shape(tile: int) -> tuple[int, int]:
    """Members that a program scores at a time, and its warps: 32 scores of a thread."""
    return (32, max(1, tile // 32)) if tile < 1024 else (16, tile // 64)


class Groups(NamedTuple):
    """What the kernel reads of `hata_kernels.rows.RowGroups`."""

    shared: torch.Tensor
    members: torch.Tensor
    sizes: torch.Tensor
    extents: torch.Tensor


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
def write_values(q_codes_ptr, scratch, row, SCORING: tl.constexpr, VALUES: tl.constexpr):
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
    tl.store(scratch.bit_scores + row * VALUES + place, value.to(tl.int8))
    tl.store(scratch.bases + row, SCORING.full - tl.sum(weight, axis=0))


@triton.jit
def shared_kernel(
    inputs,
    scratch,
    groups,
    scalars,
    SCORING: tl.constexpr,
    TILE: tl.constexpr,
    SPAN: tl.constexpr,
    ROWS: tl.constexpr,
    MEMBERS: tl.constexpr,
    WARPS: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program: some spans of tiles of one KV head, each for all members of a group.

    Its tiles' candidates go where `filter_kernel` would put them.
    """
    start_next(PDL)
    programs = tl.num_programs(0)
    head = tl.program_id(1)
    HEADS: tl.constexpr = SCORING.heads
    WORDS: tl.constexpr = SCORING.words
    VALUES: tl.constexpr = 32 * SCORING.words_pow2
    # A score of tensor cores lies, of four threads, in the one of its pair of tokens; eight
    # such groups of pairs are next to one another, then the warps. Tokens are dealt so that a
    # thread has RUN in a row, and counts them by itself.
    PAIRS: tl.constexpr = TILE // (8 * WARPS)
    RUN: tl.constexpr = 2 * min(PAIRS, 4)
    RUNS: tl.constexpr = TILE // RUN
    NEVER: tl.constexpr = 2**31 - 1
    column = tl.arange(0, TILE)
    dealt = (column // 2 % (4 * WARPS) * PAIRS + column // (8 * WARPS)) * 2 + column % 2
    run = tl.arange(0, RUNS)[:, None]
    warp = tl.arange(0, WARPS)[:, None]
    # Runs of a warp's threads are counted in eight bits each.
    lane = tl.arange(0, RUNS // WARPS)[None, None, :]
    INT: tl.constexpr = tl.int32 if RUNS // WARPS == 4 else tl.int64
    ONES: tl.constexpr = 0x01010101 if RUNS // WARPS == 4 else 0x0101010101010101
    LAST: tl.constexpr = 24 if RUNS // WARPS == 4 else 56
    in_run = tl.arange(0, RUN)
    word = tl.arange(0, SCORING.words_pow2)
    bit = bit_of(tl.arange(0, 32))
    # Nothing is loaded, but Triton moves to the threads of tensor cores, before it works on them,
    # only what it loaded: without this it would unpack elsewhere, where `unpack` is wrong.
    bit = tl.load(inputs.codes + bit, mask=(bit >= 0) & (programs < 0), other=bit)
    every = tl.arange(0, ROWS)
    spans = tl.load(groups.extents + every, mask=every < scalars.batch, other=0) // (SPAN * TILE)
    ends = tl.cumsum(spans, axis=0)
    all_spans = tl.sum(spans, axis=0)
    # Programs without work leave their SM to those of the filter, which load codes meanwhile. The
    # first one waits: the next launch waits for this one alone.
    if (tl.program_id(0) >= all_spans) & (tl.program_id(0) + head > 0):
        return
    wait_for_last(PDL)
    for span in range(tl.program_id(0), all_spans, programs):
        leader = tl.sum((ends <= span).to(tl.int32), axis=0)
        begin = (span - tl.sum(tl.where(ends <= span, spans, 0), axis=0)) * SPAN
        size = tl.load(groups.sizes + leader)
        slots_row = inputs.token_slots + leader.to(tl.int64) * scalars.token_slots_stride
        for done in range(0, size, MEMBERS):
            place = done + tl.arange(0, MEMBERS)
            member_place = groups.members + leader.to(tl.int64) * scalars.members_stride + place
            member = tl.load(member_place, mask=place < size, other=0)
            length = tl.load(inputs.seq_lens + member).to(tl.int32)
            budget = tl.minimum(tl.load(inputs.budgets + member), scalars.k_max)
            # A row that is kept whole needs no scores.
            scored = (place < size) & (length > budget)
            end = tl.where(scored, tl.load(groups.shared + member), 0)
            row = member.to(tl.int64) * HEADS + head
            found_place = scratch.found + member * scalars.found_request
            found_place += head * scalars.found_head
            base = tl.load(scratch.bases + row, mask=scored, other=0)
            floor = tl.load(scratch.floors + row, mask=scored, other=0)
            value_place = scratch.bit_scores + row[:, None] * VALUES + tl.arange(0, VALUES)[None, :]
            values = tl.load(value_place, mask=scored[:, None], other=0)
            shortest = tl.min(tl.where(scored, length, NEVER), axis=0)
            if SCORING.biased:
                bias_rows = inputs.bias + row * DISTANCES
                bucket = bucket_of(length, begin * TILE)
                nearer = bucket - bucket_of(length, (begin + SPAN) * TILE - 1)
                nearer = tl.max(tl.where(scored, nearer, 0), axis=0)
                bias = tl.load(bias_rows + bucket, mask=scored, other=0)
            last = tl.minimum(begin + SPAN, tl.max(end, axis=0) // TILE)
            for tile in tl.range(begin, last, num_stages=STAGES):
                start = tile * TILE
                slot = tl.load(slots_row + start + dealt)
                key_place = slot.to(tl.int64) * (HEADS * WORDS) + head * WORDS
                keys = tl.load(
                    inputs.codes + key_place[None, :] + word[:, None],
                    mask=(word < WORDS)[:, None],
                    other=0,
                )
                bits = unpack(keys[:, None, :], bit[None, :, None], SCORING.ptx)
                score = tl.dot(
                    values,
                    tl.reshape(bits, (VALUES, TILE)),
                    acc=base[:, None] + tl.zeros((MEMBERS, TILE), tl.int32),
                    out_dtype=tl.int32,
                )
                if SCORING.most > 0:
                    scale = tl.load(inputs.scales + slot.to(tl.int64) * HEADS + head)
                    score = scaled(score, scale[None, :], SCORING)
                if SCORING.biased:
                    score += bias[:, None]
                    if nearer > 0:
                        token = (start + dealt)[None, :]
                        of_rows = (bias, bias_rows, scored)
                        score = add_nearer(score, *of_rows, length, token, bucket, nearer)
                    score = tl.maximum(score, 0)
                if (start < scalars.sink) | (start + TILE > shortest - scalars.recent):
                    token = (start + dealt)[None, :]
                    forced = token < scalars.sink
                    forced |= token >= (length - scalars.recent)[:, None]
                    score = tl.where(forced, SCORING.forced, score)
                score = tl.reshape(score, (MEMBERS, 2 * PAIRS // RUN, RUN // 2, 4 * WARPS, 2))
                score = tl.reshape(tl.permute(score, (0, 3, 1, 2, 4)), (MEMBERS, RUNS, RUN))

                inside = start + TILE <= end
                least = tl.where(inside, floor, NEVER)[:, None, None]
                field = (4 * in_run)[None, None, :]
                kept = tl.sum(tl.where(score >= least, 1 << field, 0), axis=2)
                # The fields of such products are the sums of these and of those below.
                count = tl.reshape(count_kept(kept), (MEMBERS, WARPS, RUNS // WARPS))
                by_run = tl.sum(count.to(INT) << (8 * lane), axis=2)
                upto = tl.cumsum(tl.trans(((by_run * ONES) >> LAST).to(tl.int32) & 255), axis=0)
                # The last warp's is the sum. Its thread alone adds it, and no other waits for it.
                whole = (warp == WARPS - 1) & inside[None, :]
                again = tl.zeros((WARPS, 1), tl.int32)
                begun = tl.atomic_add(found_place[None, :] + again, upto, mask=whole, sem="relaxed")
                piece = (begun.to(tl.int64) << 32) | upto.to(tl.int64)
                tl.store(
                    (scratch.tiles + row * scalars.tiles + tile)[None, :] + again, piece, mask=whole
                )
                # Where a row has no room its list does not count; any place in it will do.
                begun = tl.where(whole & (begun + upto <= scalars.room), begun, 0)
                first = tl.trans(tl.sum(begun, axis=0)[None, :] + upto)[:, :, None]
                earlier = ((by_run * (ONES - 1))[:, :, None] >> (8 * lane)).to(tl.int32) & 255
                own = ((by_run * ONES) >> LAST).to(tl.int32) & 255
                first = tl.reshape(first - own[:, :, None] + earlier, (MEMBERS, RUNS))
                token = start + run * RUN + in_run[None, :]
                append(
                    score,
                    tl.load(slots_row + token)[None, :, :],
                    tile,
                    (scratch.entries + row * scalars.room)[:, None, None] + first[:, :, None],
                    kept[:, :, None],
                    field,
                    SCORING,
                )
