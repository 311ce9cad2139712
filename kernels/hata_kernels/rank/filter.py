"""Score every token that was not scored yet; list those that reach their row's floor.

And lists of candidates: how they are packed, appended to by a thread, and loaded.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..chain import start_next, wait_for_last
from .distance import common_bucket
from .score import load_codes, load_lanes, score_codes

#: `append` for a token, and what counts it as well: operands are numbered as they are given there.
_STORE = """{
    .reg .pred low; .reg .b32 number, high; .reg .b64 place;
    and.b32 number, $5, $6;
    setp.eq.b32 low, number, 0;
    @low bra DONE;
    bfe.u32 number, $7, $8, 4;
    mad.wide.u32 place, number, 8, $4;
    mad.lo.s32 high, $1, $9, $3;
    st.global.v2.b32 [place], {$2, high};
"""
_COUNT = """
    sub.s32 number, $1, $10;
    min.s32 number, number, $13;
    add.s32 number, number, $12;
    mad.wide.u32 place, number, 4, $11;
    red.relaxed.gpu.global.add.u32 [place], 1;
"""
_DONE = "DONE: mov.b32 $0, 0; }"
_APPEND, _APPEND_AND_COUNT = tl.constexpr(_STORE + _DONE), tl.constexpr(_STORE + _COUNT + _DONE)


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
def pack_entries(score, tile, slot, SCORING: tl.constexpr):
    """Candidates: see `RankBuffers.entries`."""
    high = (score << (31 - SCORING.score_bits)) | tile
    return (high.to(tl.int64) << 32) | slot.to(tl.int64)


@triton.jit
def unpack_entries(entry, SCORING: tl.constexpr):
    """Score, tile and slot of candidates; -1 has the score -1."""
    high = (entry >> 32).to(tl.int32)
    tile = high & ((1 << (31 - SCORING.score_bits)) - 1)
    return high >> (31 - SCORING.score_bits), tile, entry.to(tl.int32)


@triton.jit
def load_entries(entries_list, index, size, SCORING: tl.constexpr):
    """Which of a list's places are below its size, and score, tile and slot of candidates there."""
    here = index < size
    score, tile, slot = unpack_entries(tl.load(entries_list + index, mask=here, other=-1), SCORING)
    return here, score, tile, slot


@triton.jit
def section_tiles(used, TILING: tl.constexpr):
    """Tiles of a section of a row of so many; the last may have fewer, or none."""
    return tl.maximum(tl.cdiv(used, TILING.sections), TILING.least)


@triton.jit
def count_kept(kept):
    """Ones of `kept` as `append` takes it: the last field of this product is the sum of all."""
    return (kept * 0x11111111 >> 28) & 15


@triton.jit
def append(
    score,
    slot,
    tile,
    entries_run,
    kept,
    field,
    SCORING: tl.constexpr,
    floor=None,
    counts_ptr=None,
    first_bin=None,
    BINS: tl.constexpr = 0,
):
    """List the scores of runs that `kept` has a one for, in four bits a token.

    A run is of up to eight tokens, the last dimension of ``score``; ``field`` is where in ``kept``
    a token's four bits begin, and ``entries_run`` where its run's first candidate goes. With BINS
    each is counted by how far above ``floor`` it is, from ``counts_ptr + first_bin`` on.

    Triton would move all scores between threads to store some of them, and compute all their
    addresses. In PTX every thread stores what it has.
    """
    before = kept * 0x11111110  # fields are how many of the run come before
    one = 1 << field
    if SCORING.ptx:
        UNIT: tl.constexpr = 1 << (31 - SCORING.score_bits)
        arguments = (score, slot, tile, entries_run.to(tl.int64), kept, one, before, field, UNIT)
        if BINS > 0:
            arguments += (floor, counts_ptr.to(tl.int64), first_bin, BINS - 1)
        tl.inline_asm_elementwise(
            _APPEND_AND_COUNT if BINS > 0 else _APPEND,
            "=r,r,r,r,l,r,r,r,r,r,r,l,r,r" if BINS > 0 else "=r,r,r,r,l,r,r,r,r,r",
            arguments,
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
    else:
        keep = (kept & one) != 0
        entry = pack_entries(score, tile, slot, SCORING)
        tl.store(entries_run + ((before >> field) & 15), entry, mask=keep)
        if BINS > 0:
            bin = first_bin + tl.minimum(score - floor, BINS - 1)
            tl.atomic_add(counts_ptr + bin, 1, mask=keep, sem="relaxed")


@triton.jit
def filter_kernel(
    inputs,
    scratch,
    shared_ptr,
    scalars,
    SCORING: tl.constexpr,
    TILING: tl.constexpr,
    RUN: tl.constexpr,
    LANES: tl.constexpr,
    SHARED: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program: some tiles of one request, all KV heads.

    A tile's candidates go to its rows' lists, all of a head's in one piece and in position order;
    with sections to those of its section of the context, and are counted there by their scores.
    Where a piece begins depends on which program came first, and is noted for `take_kernel`.
    """
    TILE: tl.constexpr = TILING.tile
    start_next(PDL)
    programs = tl.num_programs(0)
    batch = tl.program_id(1).to(tl.int64)
    length = tl.load(inputs.seq_lens + batch).to(tl.int32)
    budget = tl.minimum(tl.load(inputs.budgets + batch), scalars.k_max)
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
    slots_row = inputs.token_slots + batch * scalars.token_slots_stride
    token = begun * TILE + run[:, None] * RUN + number[None, :]
    valid = token < tl.where(begun < used, length, 0)
    # Of few rows there are as many programs as tiles, or nearly so: there is no next one.
    AHEAD: tl.constexpr = TILING.sections == 1
    next_slot = token
    if AHEAD:
        next_slot = load_lanes(slots_row + token, valid)
    for tile in tl.range(begun, used, programs, disable_licm=True):
        start = tile * TILE
        token = start + run[:, None] * RUN + number[None, :]
        valid = token < length
        if AHEAD:
            slot = next_slot
        else:
            slot = load_lanes(slots_row + token, valid)
        keys = load_codes(inputs.codes, slot, head, SCORING)
        wait_for_last(PDL)
        # Or the compiler spreads the loads over the arithmetic, and each waits by itself.
        tl.debug_barrier()
        if AHEAD:
            next_token = token + programs * TILE
            more = next_token < length
            next_slot = load_lanes(slots_row + next_token, more)
        bucket, special = common_bucket(length, start, TILE, SCORING)
        special |= (start < scalars.sink) | (start + TILE > length - scalars.recent)
        score = score_codes(
            inputs, scalars, keys, batch, head, slot, token, length, special, bucket, SCORING
        )
        row = batch * SCORING.heads + head
        floor = tl.load(scratch.floors + row, mask=head < SCORING.heads, other=SCORING.forced + 1)
        keep = valid & (score >= floor[:, None])
        kept = tl.sum(tl.where(keep, 1 << field, 0), axis=1)
        count = tl.reshape(count_kept(kept), (LANES // SCORING.heads_pow2, SCORING.heads_pow2))
        total = tl.sum(count, axis=0)
        heads = tl.arange(0, SCORING.heads_pow2)
        rows = batch * SCORING.heads + heads
        found_place = scratch.found + batch * scalars.found_request + heads * scalars.found_head
        number_of_list = row
        if TILING.sections > 1:
            section = tile // section_tiles(used, TILING)
            found_place += section * (tl.num_programs(1) * SCORING.heads)
            number_of_list = row * TILING.sections + section
        begin = tl.atomic_add(found_place, total, mask=heads < SCORING.heads, sem="relaxed")
        piece = (begin.to(tl.int64) << 32) | total.to(tl.int64)
        tl.store(scratch.tiles + rows * scalars.tiles + tile, piece, mask=heads < SCORING.heads)
        # A piece that its row has no room for is left out: `take_kernel` sees that the row is over.
        first = begin[None, :] + tl.cumsum(count, axis=0) - count
        first = tl.reshape(tl.where((begin + total <= scalars.room)[None, :], first, -1), (LANES,))
        kept = tl.where(first >= 0, kept, 0)
        entries = scratch.entries + number_of_list * scalars.room + first
        append(
            score,
            slot,
            tile,
            entries[:, None],
            kept[:, None],
            field,
            SCORING,
            floor[:, None],
            scratch.counts,
            (number_of_list * TILING.bins).to(tl.int32)[:, None],
            TILING.bins if TILING.sections > 1 else 0,
        )
    wait_for_last(PDL)  # also where there was no tile: the next launch waits for this one alone
