"""What the last launch of the ranking does for a row whose list does not serve."""

from __future__ import annotations

import triton
import triton.language as tl

from .tokens import load_codes, score_codes, turned


@triton.jit
def _digit(counts, budget):
    """Which of three thresholds, counted in 21 bits each, the budget reaches: 0 to 3."""
    digit = ((counts & 0x1FFFFF) >= budget).to(tl.int32)
    digit += (((counts >> 21) & 0x1FFFFF) >= budget).to(tl.int32)
    return digit + ((counts >> 42) >= budget).to(tl.int32)


@triton.jit
def take_rescored(
    q_codes_ptr,
    codes_ptr,
    scales_ptr,
    slots_row,
    out_row,
    row,
    length,
    budget,
    sink,
    recent,
    SCORING: tl.constexpr,
    BLOCK: tl.constexpr,
    LANES: tl.constexpr,
):
    """Score all tokens of a row, once for every two bits of the threshold, and take the best.

    Of fewer than 2**21 tokens: their counts share an int64.
    """
    index = tl.arange(0, LANES)[:, None] * (BLOCK // LANES) + tl.arange(0, BLOCK // LANES)[None, :]
    head = (row % SCORING.heads).to(tl.int32) + tl.zeros((LANES,), tl.int32)
    threshold = 0
    above = 0
    ties_kept = 0
    ties = 0
    done = 0
    STEPS: tl.constexpr = (SCORING.score_bits + 1) // 2
    unit = 1 << (2 * STEPS - 2)
    # The threshold two bits at a time, how many are above it, then the slots.
    for step in range(0, STEPS + 2):
        reached = tl.zeros((LANES, BLOCK // LANES), dtype=tl.int64)
        for first in range(0, length, BLOCK):
            token = first + index
            valid = token < length
            slot = turned(tl.load(turned(slots_row + token), mask=turned(valid), other=0))
            keys = load_codes(codes_ptr, slot, head, SCORING)
            score = score_codes(
                keys,
                q_codes_ptr,
                scales_ptr,
                row // SCORING.heads,
                head,
                slot,
                token,
                length,
                sink,
                recent,
                (first < sink) | (first + BLOCK > length - recent),
                BLOCK // LANES,
                LANES,
                SCORING,
            )
            score = tl.where(valid, score, -1)
            if step <= STEPS:
                # In the last of these steps the unit is 0 and all three are at least 1.
                one = tl.maximum(unit, 1)
                reached += (score >= threshold + one).to(tl.int64)
                reached += (score >= threshold + 2 * one).to(tl.int64) << 21
                reached += (score >= threshold + 3 * one).to(tl.int64) << 42
            else:
                is_above = (score > threshold).to(tl.int32)
                is_tie = (score == threshold).to(tl.int32)
                # Tokens in position order.
                flat_tie = tl.reshape(is_tie, (BLOCK,))
                tie = ties + tl.cumsum(flat_tie, axis=0) - flat_tie
                kept_tie = (flat_tie == 1) & (tie < ties_kept)
                keep = (tl.reshape(is_above, (BLOCK,)) == 1) | kept_tie
                kept = keep.to(tl.int32)
                to = done + tl.cumsum(kept, axis=0) - kept
                tl.store(out_row + to, tl.reshape(slot, (BLOCK,)), mask=keep)
                done += tl.sum(kept, axis=0)
                ties += tl.sum(flat_tie, axis=0)
        counts = tl.sum(tl.reshape(reached, (BLOCK,)), axis=0)
        if step < STEPS:
            threshold += _digit(counts, budget) * unit
            unit = unit >> 2
        if step == STEPS:
            above = (counts & 0x1FFFFF).to(tl.int32)
            ties_kept = budget - above
