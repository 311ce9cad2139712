"""Triton scores by exact attention: log-sum-exp per split of the context, then the scores.

Two launches. The first gives the largest logit and the sum of exponentials of every split and
query head; the second combines a row's splits, computes the logits again and sums the group's
probabilities. Logits are not stored: keys are read twice instead, and nothing grows with the
context but the splits. No launch depends on ``seq_lens``: safe inside a CUDA graph.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..checks import expect
from .exact import MAX_GROUP

HEAD_DIMS = (64, 96, 128, 256)

# Tokens per program, in both launches; they loop over it in blocks.
SPLIT = 512
# Splits that the second launch combines at a time.
TILE = 64

LOG2_E = 1.4426950408889634


@triton.jit
def _logits(
    q,
    k_cache_ptr,
    slots_row,
    head,
    token,
    valid,
    scale,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_POW2: tl.constexpr,
):
    """Logits times log2(e), ``[group, tokens]``; minus infinity where not valid."""
    slot = tl.load(slots_row + token, mask=valid, other=0).to(tl.int64)
    d = tl.arange(0, DIM_POW2)
    place = (slot * HEADS + head) * DIM
    keys = tl.load(
        k_cache_ptr + place[None, :] + d[:, None], mask=valid[None, :] & (d < DIM)[:, None], other=0
    )
    # ieee: tf32 would lose digits of float32 inputs.
    logits = tl.dot(q, keys, input_precision="ieee") * scale
    return tl.where(valid[None, :], logits, float("-inf"))


@triton.jit
def _queries(
    q_ptr,
    q_stride_token,
    q_stride_head,
    batch,
    head,
    GROUP: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    DIM: tl.constexpr,
    DIM_POW2: tl.constexpr,
):
    """Queries of one request and KV head, ``[group, D]``, padded with zeros."""
    member = tl.arange(0, GROUP_PAD)
    d = tl.arange(0, DIM_POW2)
    place = batch * q_stride_token + (head * GROUP + member) * q_stride_head
    mask = (member < GROUP)[:, None] & (d < DIM)[None, :]
    return tl.load(q_ptr + place[:, None] + d[None, :], mask=mask, other=0)


@triton.jit
def _partial_kernel(
    q_ptr,
    k_cache_ptr,
    token_slots_ptr,
    seq_lens_ptr,
    partial_ptr,
    token_slots_stride,
    q_stride_token,
    q_stride_head,
    width,
    splits,
    scale,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    DIM: tl.constexpr,
    DIM_POW2: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Largest logit and sum of exponentials of one split, for every query head of a KV head."""
    head = tl.program_id(0)
    batch = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)
    length = tl.minimum(tl.load(seq_lens_ptr + batch).to(tl.int32), width)
    if split * SPLIT >= length:
        return
    q = _queries(q_ptr, q_stride_token, q_stride_head, batch, head, GROUP, GROUP_PAD, DIM, DIM_POW2)
    slots_row = token_slots_ptr + batch * token_slots_stride
    peak = tl.full((GROUP_PAD,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((GROUP_PAD,), dtype=tl.float32)
    # The first block of a split holds a token within the length, so the peak is finite after it.
    for first in range(split * SPLIT, tl.minimum(split * SPLIT + SPLIT, length), BLOCK):
        token = first + tl.arange(0, BLOCK)
        logits = _logits(
            q, k_cache_ptr, slots_row, head, token, token < length, scale, HEADS, DIM, DIM_POW2
        )
        new_peak = tl.maximum(peak, tl.max(logits, axis=1))
        total = total * tl.exp2(peak - new_peak)
        total += tl.sum(tl.exp2(logits - new_peak[:, None]), axis=1)
        peak = new_peak
    member = tl.arange(0, GROUP_PAD)
    place = ((batch * HEADS + head) * splits + split) * (2 * GROUP_PAD) + member
    tl.store(partial_ptr + place, peak)
    tl.store(partial_ptr + place + GROUP_PAD, total)


@triton.jit
def _exact_score_kernel(
    q_ptr,
    k_cache_ptr,
    token_slots_ptr,
    seq_lens_ptr,
    partial_ptr,
    out_ptr,
    token_slots_stride,
    q_stride_token,
    q_stride_head,
    width,
    splits,
    sink,
    recent,
    scale,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    DIM: tl.constexpr,
    DIM_POW2: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    """Summed probabilities of the tokens of one split."""
    head = tl.program_id(0)
    batch = tl.program_id(1).to(tl.int64)
    start = tl.program_id(2) * SPLIT
    length = tl.minimum(tl.load(seq_lens_ptr + batch).to(tl.int32), width)
    if start >= length:
        return
    member = tl.arange(0, GROUP_PAD)
    peak = tl.full((GROUP_PAD,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((GROUP_PAD,), dtype=tl.float32)
    used = tl.cdiv(length, SPLIT)
    for first in range(0, used, TILE):
        split = first + tl.arange(0, TILE)
        place = ((batch * HEADS + head) * splits + split)[:, None] * (2 * GROUP_PAD)
        partials = partial_ptr + place + member[None, :]
        mask = (split < used)[:, None]
        peaks = tl.load(partials, mask=mask, other=float("-inf"))
        totals = tl.load(partials + GROUP_PAD, mask=mask, other=0)
        new_peak = tl.maximum(peak, tl.max(peaks, axis=0))
        total = total * tl.exp2(peak - new_peak)
        total += tl.sum(totals * tl.exp2(peaks - new_peak[None, :]), axis=0)
        peak = new_peak
    log_sum = peak + tl.log2(total)

    q = _queries(q_ptr, q_stride_token, q_stride_head, batch, head, GROUP, GROUP_PAD, DIM, DIM_POW2)
    slots_row = token_slots_ptr + batch * token_slots_stride
    for first in range(start, tl.minimum(start + SPLIT, length), BLOCK):
        token = first + tl.arange(0, BLOCK)
        valid = token < length
        logits = _logits(q, k_cache_ptr, slots_row, head, token, valid, scale, HEADS, DIM, DIM_POW2)
        share = tl.where((member < GROUP)[:, None], tl.exp2(logits - log_sum[:, None]), 0.0)
        forced = (token < sink) | (token >= length - recent)
        scores = tl.where(forced, float("inf"), tl.sum(share, axis=0))
        tl.store(out_ptr + (batch * HEADS + head) * width + token, scores, mask=valid)


def launch_exact(q, k_cache, token_slots, seq_lens, scale, sink, recent, out) -> None:
    """`hata_kernels.score.exact_score` on the GPU, of checked arguments.

    Raises
    ------
    ValueError
        When sizes, dtypes or strides are not those that the kernels take.
    """
    batch, kv_heads, width = out.shape
    group, dim = q.shape[1] // kv_heads, q.shape[2]
    expect(dim in HEAD_DIMS, "q.shape[2]", " or ".join(map(str, HEAD_DIMS)), dim)
    expect(1 <= group <= MAX_GROUP, "query heads per KV head", f"1 to {MAX_GROUP}", group)
    expect(q.dtype == k_cache.dtype, "q.dtype", k_cache.dtype, q.dtype)
    expect(q.stride(2) == 1, "q.stride(2)", 1, q.stride(2))
    expect(k_cache.is_contiguous(), "k_cache strides", "a contiguous tensor", k_cache.stride())
    if batch == 0 or width == 0:
        return
    splits, group_pad = triton.cdiv(width, SPLIT), MAX_GROUP  # tl.dot needs 16 rows
    shape = (batch, kv_heads, splits, 2, group_pad)
    partial = torch.empty(shape, dtype=torch.float32, device=q.device)
    # Tiles of at most 32 KiB of keys.
    block = 64 if dim * k_cache.element_size() <= 512 else 32
    constants = {
        "HEADS": kv_heads,
        "GROUP": group,
        "GROUP_PAD": group_pad,
        "DIM": dim,
        "DIM_POW2": triton.next_power_of_2(dim),
        "SPLIT": SPLIT,
        "BLOCK": block,
        "num_warps": 4,
    }
    shared = (token_slots.stride(0), q.stride(0), q.stride(1), width, splits)
    inputs = (q, k_cache, token_slots, seq_lens, partial)
    _partial_kernel[(kv_heads, batch, splits)](*inputs, *shared, scale * LOG2_E, **constants)
    _exact_score_kernel[(kv_heads, batch, splits)](
        *inputs, out, *shared, sink, recent, scale * LOG2_E, TILE=TILE, **constants
    )
