"""First launch of the ranking: a floor for every row, from a sample of its context."""

from __future__ import annotations

import triton
import triton.language as tl

from ..chain import start_next, wait_for_last
from .score import load_codes, load_lanes, score_codes
from .shared import write_values

# Tokens that a floor is taken from, at least.
SAMPLE = 1024
# Scores of up to so many values (128 bits of four queries) tie by a percent of a context at the
# floor, and a list is of up to so many times the tokens that are kept.
TIED_LEVELS, TIED_LIST = 600, 5
# Contexts of at most this many tokens have no floor: taking all of them costs less than sampling.
UNSAMPLED = 2048
# The floor is set for so many standard deviations of what a sample can mislead by. Beyond it the
# last launch scores the row again: 1 row in 300,000.
DEVIATIONS = 4.5
WARPS = 8


def sample_size(k_max: int, levels: int, in_registers: int) -> int:
    """Tokens that a floor is taken from, for scores of so many values.

    Twice as many where ties might make lists longer than `take_kernel` holds ``in_registers``, 15
    us more: with 6 requests of 130,000 tokens, k 2048 and HATA's codes of 64 bits in all layers, of
    128 bits in a third of them. It costs 1 to 3 us elsewhere. With 64 bits such a layer took 64.8
    us instead of 74.9 on an H200.
    """
    tied = levels <= TIED_LEVELS and TIED_LIST * k_max > in_registers
    return 2 * SAMPLE if tied else SAMPLE


@triton.jit
def floor_kernel(
    inputs,
    scratch,
    scalars,
    SCORING: tl.constexpr,
    TILING: tl.constexpr,
    SAMPLE: tl.constexpr,
    LANES: tl.constexpr,
    UNSAMPLED: tl.constexpr,
    DEVIATIONS: tl.constexpr,
    VALUES: tl.constexpr,
    PDL: tl.constexpr,
):
    """Floor of one row: 0, below every score, where the context is short or mostly kept.

    And its query as `shared_kernel` reads it, where that follows: where VALUES is not 0.
    """
    start_next(PDL)
    row = tl.program_id(0).to(tl.int64)
    batch = row // SCORING.heads
    length = tl.load(inputs.seq_lens + batch).to(tl.int32)
    budget = tl.minimum(tl.load(inputs.budgets + batch), scalars.k_max)
    if length <= budget:
        wait_for_last(PDL)  # the next launch waits for this one alone
        return
    place = tl.arange(0, LANES)[:, None] + tl.arange(0, SAMPLE // LANES)[None, :] * LANES
    # One token of every SAMPLE-th part of the context, not always the first: texts have periods.
    jitter = (place * 40503) & 1023
    token = ((place.to(tl.int64) * 1024 + jitter) * length // (SAMPLE * 1024)).to(tl.int32)
    slots_row = inputs.token_slots + batch * scalars.token_slots_stride
    slot = load_lanes(slots_row + token)
    head = (row % SCORING.heads).to(tl.int32) + tl.zeros((LANES,), tl.int32)
    keys = load_codes(inputs.codes, slot, head, SCORING)
    wait_for_last(PDL)
    if VALUES > 0:
        write_values(inputs.q_codes, scratch, row, SCORING, VALUES)
    found_row = scratch.found + batch * scalars.found_request
    found_row += row % SCORING.heads * scalars.found_head
    tl.store(found_row + tl.arange(0, TILING.sections) * tl.num_programs(0), 0)
    if TILING.sections > 1:
        COUNTS: tl.constexpr = TILING.sections * TILING.bins
        tl.store(scratch.counts + row * COUNTS + tl.arange(0, COUNTS), 0)
    if (length <= UNSAMPLED) | (budget * 4 >= length):
        tl.store(scratch.floors + row, 0)
        return
    score = score_codes(inputs, scalars, keys, batch, head, slot, token, length, True, 0, SCORING)
    # So many of the top k are expected in the sample; it holds more than `rank` of them, which
    # would put the floor above the threshold, where chance is off by DEVIATIONS of its root.
    expected = budget.to(tl.float32) * SAMPLE / length.to(tl.float32)
    rank = (expected + DEVIATIONS * tl.sqrt(expected) + 4).to(tl.int32)
    floor = 0
    BITS: tl.constexpr = SCORING.score_bits
    unit = 1 << (BITS + BITS % 2 - 2)
    for _ in tl.static_range(0, BITS, 2):
        # Three counts below 2**16 in one sum.
        reached = (score >= floor + unit).to(tl.int64)
        reached += (score >= floor + 2 * unit).to(tl.int64) << 16
        reached += (score >= floor + 3 * unit).to(tl.int64) << 32
        counts = tl.sum(tl.reshape(reached, (SAMPLE,)), axis=0)
        digit = ((counts & 0xFFFF) >= rank).to(tl.int32)
        digit += (((counts >> 16) & 0xFFFF) >= rank).to(tl.int32)
        digit += ((counts >> 32) >= rank).to(tl.int32)
        floor += digit * unit
        unit = unit >> 2
    tl.store(scratch.floors + row, floor)
