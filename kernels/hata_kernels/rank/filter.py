"""Score every token that was not scored yet; list those that reach their row's floor."""

from __future__ import annotations

import triton
import triton.language as tl

from ..chain import start_next, wait_for_last
from .emit import count_kept, emit
from .sections import section_tiles
from .tokens import load_codes, score_codes, turned


def filter_limits(words: int, sections: int = 1) -> tuple[int, int]:
    """Registers of a thread, and programs at most.

    Where rows have sections no slots are loaded ahead, but scores are counted: 80 registers, which
    codes of more than four words, loaded in pieces, do not fit.

    The more words a thread holds, the fewer programs an SM has in flight: five of codes of more
    than two words, or eight. The launch has two of each: a grid for the longest context would cost
    a short batch more than it scores, and with one of each the last ones would run alone longer.
    """
    if sections > 1 and words <= 4:
        return 80, 2112
    return (64, 2112) if words <= 2 else (96, 1320)


@triton.jit
def filter_kernel(
    q_codes_ptr,
    codes_ptr,
    scales_ptr,
    token_slots_ptr,
    seq_lens_ptr,
    budgets_ptr,
    floors_ptr,
    found_ptr,
    entries_ptr,
    counts_ptr,
    tiles_ptr,
    shared_ptr,
    token_slots_stride,
    tiles,
    room,
    sink,
    recent,
    k_max,
    found_batch,
    found_head,
    SCORING: tl.constexpr,
    TILE: tl.constexpr,
    RUN: tl.constexpr,
    LANES: tl.constexpr,
    SHARED: tl.constexpr,
    SECTIONS: tl.constexpr,
    LEAST: tl.constexpr,
    BINS: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program: some tiles of TILE tokens of one request, all KV heads.

    A tile's candidates go to its rows' lists, all of a head's in one piece and in position order;
    with SECTIONS to those of its section of the context, and are counted there by their scores.
    Where a piece begins depends on which program came first, and is noted for `take_kernel`.
    """
    start_next(PDL)
    programs = tl.num_programs(0)
    batch = tl.program_id(1).to(tl.int64)
    length = tl.load(seq_lens_ptr + batch).to(tl.int32)
    budget = tl.minimum(tl.load(budgets_ptr + batch), k_max)
    # A row that is kept whole needs no scores.
    used = tl.where(length <= budget, 0, tl.cdiv(length, TILE))
    begun = tl.program_id(0)
    if SHARED:  # `shared_kernel` had the tiles before
        begun += tl.load(shared_ptr + batch) // TILE
    # A lane is one KV head of RUN tokens in a row, so that most of the prefix sum is in a thread.
    lane = tl.arange(0, LANES)
    # The shift is by nothing, but hides from Triton that tokens and heads are consecutive: it would
    # spread them over threads to load a few numbers at once, and move all that follows between
    # threads.
    hidden = programs >> 31
    head = lane % SCORING.heads_pow2 ^ hidden
    run = lane // SCORING.heads_pow2
    number = tl.arange(0, RUN) ^ hidden
    field = (4 * tl.arange(0, RUN))[None, :]
    slots_row = token_slots_ptr + batch * token_slots_stride
    token = begun * TILE + run[:, None] * RUN + number[None, :]
    valid = token < tl.where(begun < used, length, 0)
    # Of few rows there are as many programs as tiles, or nearly so: there is no next one.
    AHEAD: tl.constexpr = SECTIONS == 1
    next_slot = token
    if AHEAD:
        next_slot = turned(tl.load(turned(slots_row + token), mask=turned(valid), other=0))
    for tile in tl.range(begun, used, programs, disable_licm=True):
        start = tile * TILE
        token = start + run[:, None] * RUN + number[None, :]
        valid = token < length
        if AHEAD:
            slot = next_slot
        else:
            slot = turned(tl.load(turned(slots_row + token), mask=turned(valid), other=0))
        keys = load_codes(codes_ptr, slot, head, SCORING)
        wait_for_last(PDL)
        # Or the compiler spreads the loads over the arithmetic, and each waits by itself.
        tl.debug_barrier()
        if AHEAD:
            next_token = token + programs * TILE
            more = turned(next_token < length)
            next_slot = turned(tl.load(turned(slots_row + next_token), mask=more, other=0))
        score = score_codes(
            keys,
            q_codes_ptr,
            scales_ptr,
            batch,
            head,
            slot,
            token,
            length,
            sink,
            recent,
            (start < sink) | (start + TILE > length - recent),
            RUN,
            LANES,
            SCORING,
        )
        row = batch * SCORING.heads + head
        floor = tl.load(floors_ptr + row, mask=head < SCORING.heads, other=SCORING.forced + 1)
        keep = valid & (score >= floor[:, None])
        kept = tl.sum(tl.where(keep, 1 << field, 0), axis=1)
        count = tl.reshape(count_kept(kept), (LANES // SCORING.heads_pow2, SCORING.heads_pow2))
        total = tl.sum(count, axis=0)
        heads = tl.arange(0, SCORING.heads_pow2)
        rows = batch * SCORING.heads + heads
        found_place = found_ptr + batch * found_batch + heads * found_head
        number_of_list = row
        if SECTIONS > 1:
            section = tile // section_tiles(used, TILE, SECTIONS, LEAST)
            found_place += section * (tl.num_programs(1) * SCORING.heads)
            number_of_list = row * SECTIONS + section
        begin = tl.atomic_add(found_place, total, mask=heads < SCORING.heads, sem="relaxed")
        piece = (begin.to(tl.int64) << 32) | total.to(tl.int64)
        tl.store(tiles_ptr + rows * tiles + tile, piece, mask=heads < SCORING.heads)
        # A piece that its row has no room for is left out: `take_kernel` sees that the row is over.
        first = begin[None, :] + tl.cumsum(count, axis=0) - count
        first = tl.reshape(tl.where((begin + total <= room)[None, :], first, -1), (LANES,))
        kept = tl.where(first >= 0, kept, 0)
        entries = entries_ptr + number_of_list * room + first
        emit(
            score,
            slot,
            tile,
            entries[:, None],
            kept[:, None],
            field,
            SCORING,
            floor[:, None],
            counts_ptr,
            (number_of_list * BINS).to(tl.int32)[:, None],
            BINS if SECTIONS > 1 else 0,
        )
    wait_for_last(PDL)  # also where there was no tile: the next launch waits for this one alone
