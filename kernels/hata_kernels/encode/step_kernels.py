"""Kernel of a decode step of `AsymmetricEncoder`; `launch_step` launches it."""

from __future__ import annotations

import triton
import triton.language as tl

from ..chain import start_next, wait_for_last
from .triton import _encode_kernel
from .triton_planes import store_planes
from .triton_residual import _residual_kernel


@triton.jit
def _asymmetric_step_kernel(
    q_ptr,
    k_ptr,
    query_weight_ptr,
    query_bias_ptr,
    key_weight_ptr,
    key_bias_ptr,
    residual_ptr,
    q_codes_ptr,
    codes_ptr,
    slots_ptr,
    scales_ptr,
    scale_step_ptr,
    tally_ptr,
    partial_ptr,
    arrived_ptr,
    tokens,
    q_stride_token,
    q_stride_head,
    k_stride_token,
    k_stride_head,
    clip,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    BITS: tl.constexpr,
    PLANES: tl.constexpr,
    TWO_STAGES: tl.constexpr,
    UNIT: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    MOST: tl.constexpr,
    SAME_DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_1: tl.constexpr,
    BLOCK_2: tl.constexpr,
    BLOCK_KD: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program: a block of keys of one KV head, or of queries a part of their projection.

    The program that comes last adds the parts of a block in their order, and quantises.
    """
    start_next(PDL)
    block = tl.program_id(0)
    head = tl.program_id(1)
    split = tl.program_id(2)
    if split == SPLITS:
        wait_for_last(PDL)
        if TWO_STAGES:
            _residual_kernel(
                k_ptr,
                key_weight_ptr,
                key_bias_ptr,
                residual_ptr,
                codes_ptr,
                slots_ptr,
                scales_ptr,
                scale_step_ptr,
                tally_ptr,
                tokens,
                k_stride_token,
                k_stride_head,
                KV_HEADS,
                DIM,
                BITS,
                UNIT,
                HAS_SCALES,
                MOST,
                SAME_DTYPE,
                BLOCK_M,
                BLOCK_1,
                BLOCK_2,
                BLOCK_KD,
            )
        else:
            _encode_kernel(
                0,
                SPLITS,
                k_ptr,
                key_weight_ptr,
                key_bias_ptr,
                codes_ptr,
                slots_ptr,
                scales_ptr,
                scale_step_ptr,
                tally_ptr,
                tokens,
                k_stride_token,
                k_stride_head,
                KV_HEADS,
                1,
                DIM,
                BITS,
                True,
                True,
                False,
                HAS_SCALES,
                MOST,
                SAME_DTYPE,
                BLOCK_M,
                BLOCK_1,
                BITS // BLOCK_1,
                BLOCK_KD,
            )
        return
    token = block * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = token < tokens
    token = token.to(tl.int64)
    column = tl.arange(0, BLOCK_R)
    in_code = column < BITS
    # Entry e of the group's vector is number e % D of query head e // D.
    entry = split * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = entry < GROUP * DIM
    w = tl.load(
        query_weight_ptr + (head * GROUP * DIM + entry[:, None]) * BITS + column[None, :],
        mask=inside[:, None] & in_code[None, :],
        other=0,
    )
    wait_for_last(PDL)
    place = (head * GROUP + entry // DIM) * q_stride_head + entry % DIM
    q = tl.load(
        q_ptr + token[:, None] * q_stride_token + place[None, :],
        mask=valid[:, None] & inside[None, :],
        other=0,
    )
    if not SAME_DTYPE:
        q = q.to(tl.float32)
        w = w.to(tl.float32)
    # ieee: tf32 would drop 13 bits of float32 inputs and move levels.
    u = tl.dot(q, w, input_precision="ieee")
    block_head = block * KV_HEADS + head
    row = tl.arange(0, BLOCK_M)
    tile = partial_ptr + block_head.to(tl.int64) * (SPLITS * BLOCK_M * BLOCK_R)
    tile_place = row[:, None] * BLOCK_R + column[None, :]
    tl.store(tile + split * (BLOCK_M * BLOCK_R) + tile_place, u)
    tl.debug_barrier()  # all threads' parts before this program's arrival
    if tl.atomic_add(arrived_ptr + block_head, 1, sem="acq_rel") == SPLITS - 1:
        total = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
        for other in tl.static_range(SPLITS):
            # From the L2: another program's writes do not reach this one's L1.
            total += tl.load(tile + other * (BLOCK_M * BLOCK_R) + tile_place, cache_modifier=".cg")
        bias = tl.load(query_bias_ptr + head * BITS + column, mask=in_code, other=0)
        total += bias.to(tl.float32)[None, :]
        store_planes(
            total, q_codes_ptr, token, valid, head, clip, KV_HEADS, BITS, PLANES, BLOCK_M, BLOCK_R
        )
        tl.store(arrived_ptr + block_head, 0)
