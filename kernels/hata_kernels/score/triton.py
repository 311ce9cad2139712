"""Triton scorer: XOR, popcount and weighted sum over the query planes.

Servers rank without it (`hata_kernels.rank`); it stays to compare with.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from .arguments import check_score
from .parts import popcount, scaled
from .scoring import Scoring

# Tokens per program. With 16-byte codes every thread of 4 warps has four 16-byte loads in flight.
BLOCK = 512


@triton.jit
def _score_kernel(
    q_codes_ptr,
    codes_ptr,
    scales_ptr,
    token_slots_ptr,
    seq_lens_ptr,
    out_ptr,
    token_slots_stride,
    width,
    sink,
    recent,
    SCORING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: BLOCK tokens of one request for one KV head.

    Heads are the fastest grid axis: the codes of a token's heads are neighbours in memory, so the
    programs that share cache lines run together.
    """
    head = tl.program_id(0)
    batch = tl.program_id(1).to(tl.int64)
    start = tl.program_id(2) * BLOCK
    # The grid covers the widest context; whether a block has work is known on the device only.
    length = tl.load(seq_lens_ptr + batch).to(tl.int32)
    if start >= length:
        return
    token = start + tl.arange(0, BLOCK)
    valid = (token < length) & (token < width)
    slot = tl.load(token_slots_ptr + batch * token_slots_stride + token, mask=valid, other=0)
    slot = slot.to(tl.int64)
    WORDS: tl.constexpr = SCORING.words_pow2
    word = tl.arange(0, WORDS)
    in_code = word < SCORING.words
    key_place = slot * (SCORING.heads * SCORING.words) + head * SCORING.words
    keys = tl.load(
        codes_ptr + key_place[:, None] + word[None, :],
        mask=valid[:, None] & in_code[None, :],
        other=0,
    )
    PLANES: tl.constexpr = SCORING.planes
    distance = tl.zeros((BLOCK, WORDS), dtype=tl.int32)
    q_place = q_codes_ptr + (batch * SCORING.heads + head) * (PLANES * SCORING.words)
    for plane in tl.static_range(PLANES):
        # Words beyond the code are 0 on both sides and add nothing.
        query = tl.load(q_place + plane * SCORING.words + word, mask=in_code, other=0)
        distance += popcount(keys ^ query[None, :], SCORING.ptx) * SCORING.weights[plane]
    scores = SCORING.full - tl.sum(distance, axis=1)
    if SCORING.most > 0:
        scale = tl.load(scales_ptr + slot * SCORING.heads + head, mask=valid, other=0)
        scores = scaled(scores, scale, SCORING)
    forced = (token < sink) | (token >= length - recent)
    scores = tl.where(forced, SCORING.forced, scores)
    out_row = out_ptr + (batch * SCORING.heads + head) * width
    tl.store(out_row + token, scores.to(out_ptr.dtype.element_ty), mask=valid)


def score_triton(
    q_codes: torch.Tensor,
    codes: torch.Tensor,
    token_slots: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    plane_weights: Sequence[int],
    sink: int,
    recent: int,
    out: torch.Tensor,
    scales: torch.Tensor | None = None,
    scale_bits: int = 0,
) -> torch.Tensor:
    """Score on the GPU; same contract as `score_naive`.

    The launch depends on shapes only, never on ``seq_lens``: safe inside a CUDA graph. Scaled
    scores are computed in int32, in int64 where ``2 * M * (2**scale_bits - 1)`` needs it.

    Raises
    ------
    ValueError
        As `score_naive`.
    """
    check_score(
        q_codes, codes, token_slots, seq_lens, plane_weights, sink, recent, out, scales, scale_bits
    )
    batch, kv_heads, width = out.shape
    if batch == 0 or width == 0:
        return out
    grid = (kv_heads, batch, triton.cdiv(width, BLOCK))
    _score_kernel[grid](
        q_codes,
        codes,
        scales,
        token_slots,
        seq_lens,
        out,
        token_slots.stride(0),
        width,
        sink,
        recent,
        SCORING=Scoring.of(codes, plane_weights, scale_bits),
        BLOCK=BLOCK,
        num_warps=4,
    )
    return out
