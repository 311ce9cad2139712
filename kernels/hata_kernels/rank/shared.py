"""Between the floor and the filter: score the tiles that many requests share, once for all."""

from __future__ import annotations

import triton
import triton.language as tl

from ..chain import start_next, wait_for_last
from ..score.parts import scaled
from .emit import count_kept, emit
from .shared_parts import bit_of, unpack

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


@triton.jit
def shared_kernel(
    codes_ptr,
    scales_ptr,
    token_slots_ptr,
    seq_lens_ptr,
    budgets_ptr,
    floors_ptr,
    found_ptr,
    entries_ptr,
    tiles_ptr,
    values_ptr,
    bases_ptr,
    shared_ptr,
    members_ptr,
    sizes_ptr,
    extents_ptr,
    token_slots_stride,
    members_stride,
    tiles,
    room,
    sink,
    recent,
    k_max,
    found_batch,
    found_head,
    batch,
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
    bit = tl.load(codes_ptr + bit, mask=(bit >= 0) & (programs < 0), other=bit)
    every = tl.arange(0, ROWS)
    spans = tl.load(extents_ptr + every, mask=every < batch, other=0) // (SPAN * TILE)
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
        size = tl.load(sizes_ptr + leader)
        slots_row = token_slots_ptr + leader.to(tl.int64) * token_slots_stride
        for done in range(0, size, MEMBERS):
            place = done + tl.arange(0, MEMBERS)
            member_place = members_ptr + leader.to(tl.int64) * members_stride + place
            member = tl.load(member_place, mask=place < size, other=0)
            length = tl.load(seq_lens_ptr + member).to(tl.int32)
            budget = tl.minimum(tl.load(budgets_ptr + member), k_max)
            # A row that is kept whole needs no scores.
            scored = (place < size) & (length > budget)
            end = tl.where(scored, tl.load(shared_ptr + member), 0)
            row = member.to(tl.int64) * HEADS + head
            found_place = found_ptr + member * found_batch + head * found_head
            base = tl.load(bases_ptr + row, mask=scored, other=0)
            floor = tl.load(floors_ptr + row, mask=scored, other=0)
            value_place = values_ptr + row[:, None] * VALUES + tl.arange(0, VALUES)[None, :]
            values = tl.load(value_place, mask=scored[:, None], other=0)
            shortest = tl.min(tl.where(scored, length, NEVER), axis=0)
            last = tl.minimum(begin + SPAN, tl.max(end, axis=0) // TILE)
            for tile in tl.range(begin, last, num_stages=STAGES):
                start = tile * TILE
                slot = tl.load(slots_row + start + dealt)
                key_place = slot.to(tl.int64) * (HEADS * WORDS) + head * WORDS
                keys = tl.load(
                    codes_ptr + key_place[None, :] + word[:, None],
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
                    scale = tl.load(scales_ptr + slot.to(tl.int64) * HEADS + head)
                    score = scaled(score, scale[None, :], SCORING)
                if (start < sink) | (start + TILE > shortest - recent):
                    token = (start + dealt)[None, :]
                    forced = (token < sink) | (token >= (length - recent)[:, None])
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
                tl.store((tiles_ptr + row * tiles + tile)[None, :] + again, piece, mask=whole)
                # Where a row has no room its list does not count; any place in it will do.
                begun = tl.where(whole & (begun + upto <= room), begun, 0)
                first = tl.trans(tl.sum(begun, axis=0)[None, :] + upto)[:, :, None]
                earlier = ((by_run * (ONES - 1))[:, :, None] >> (8 * lane)).to(tl.int32) & 255
                own = ((by_run * ONES) >> LAST).to(tl.int32) & 255
                first = tl.reshape(first - own[:, :, None] + earlier, (MEMBERS, RUNS))
                token = start + run * RUN + in_run[None, :]
                emit(
                    score,
                    tl.load(slots_row + token)[None, :, :],
                    tile,
                    (entries_ptr + row * room)[:, None, None] + first[:, :, None],
                    kept[:, :, None],
                    field,
                    SCORING,
                )
