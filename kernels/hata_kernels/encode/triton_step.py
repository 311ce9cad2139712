"""Triton encoder of a decode step of `AsymmetricEncoder`: its queries and keys in one launch.

A step has few tokens, so a launch costs more than what it computes, and the weights of the
queries are the most of its bytes: they are split over many programs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..bits import WORD_BITS
from ..chain import chain_options, most_cache, start_next, wait_for_last
from ..checks import expect
from ..encoders.base import Queries
from .triton import Stored, _encode_kernel, expect_bits, expect_rows
from .triton_planes import Planes, store_planes
from .triton_residual import _residual_kernel

BLOCK_M = 16
WARPS = 4


@triton.jit
def _asymmetric_step_kernel(
    q_ptr,
    k_ptr,
    query_weight_ptr,
    query_bias_ptr,
    key_weight_ptr,
    key_bias_ptr,
    residual_ptr,
    planes,
    stored,
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
    UNIT: tl.constexpr,
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
        if residual_ptr is not None:
            _residual_kernel(
                k_ptr,
                key_weight_ptr,
                key_bias_ptr,
                residual_ptr,
                stored,
                tokens,
                k_stride_token,
                k_stride_head,
                KV_HEADS,
                DIM,
                BITS,
                UNIT,
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
                stored,
                tokens,
                k_stride_token,
                k_stride_head,
                KV_HEADS,
                1,
                DIM,
                BITS,
                False,
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
            total, planes, token, valid, head, clip, KV_HEADS, BITS, PLANES, BLOCK_M, BLOCK_R
        )
        tl.store(arrived_ptr + block_head, 0)


class StepScratch:
    """Partial projections of a step's queries, for up to so many tokens.

    Parameters
    ----------
    tokens, kv_heads, group, dim, bits : int
    device : torch.device
    """

    def __init__(
        self, tokens: int, kv_heads: int, group: int, dim: int, bits: int, device: torch.device
    ) -> None:
        block_r, _, splits = step_blocks(group, dim, bits)
        blocks = triton.cdiv(tokens, BLOCK_M) * kv_heads
        self.partial = torch.empty(blocks * splits * BLOCK_M * block_r, device=device)
        # How many parts of a block are there; 0 between launches.
        self.arrived = torch.zeros(blocks, dtype=torch.int32, device=device)


def step_blocks(group: int, dim: int, bits: int) -> tuple[int, int, int]:
    """Columns, entries and number of the parts of a query's projection."""
    block_r = triton.next_power_of_2(bits)
    block_d = max(16, min(128, 16384 // block_r))
    return block_r, block_d, triton.cdiv(group * dim, block_d)


def launch_step(encoder, q, k, codes, slots, scales, scratch, tally) -> Queries:
    """`AsymmetricEncoder.encode_step` of checked arguments, in one launch.

    Launches that follow one another may share ``scratch``.

    Raises
    ------
    ValueError
        When the last dimension of q or k is not contiguous, their dtype not the weights', codes
        have more than 1024 bits, or the scratch is too small.
    """
    expect_rows(encoder.query_weight, q=q, k=k)
    expect_bits(encoder.bits)
    tokens, bits, half = len(k), encoder.bits, encoder.bits // 2
    kv_heads, group, dim = encoder.num_kv_heads, encoder.group, encoder.head_dim
    planes, residual = Planes.of(encoder, tokens, q.device), encoder.residual_weight
    if tokens == 0:
        return planes.queries
    if scratch is None:
        scratch = StepScratch(tokens, kv_heads, group, dim, bits, q.device)
    block_r, block_d, splits = step_blocks(group, dim, bits)
    blocks = triton.cdiv(tokens, BLOCK_M) * kv_heads
    room = min(scratch.arrived.numel(), scratch.partial.numel() // (splits * BLOCK_M * block_r))
    expect(room >= blocks, "scratch", f"{blocks} blocks of {BLOCK_M} tokens", room)
    wide = q.dtype != torch.float32
    unit = WORD_BITS if half % WORD_BITS == 0 or residual is None else WORD_BITS // 2
    units = codes if unit == WORD_BITS else codes.view(torch.int16)
    block_2 = triton.next_power_of_2(half)
    block_1 = min(block_2, 64 if wide else 32)
    if residual is None:
        block_1 = next(size for size in ((128, 64, 32) if wide else (32,)) if bits % size == 0)
    most_cache(
        _asymmetric_step_kernel[(triton.cdiv(tokens, BLOCK_M), kv_heads, splits + 1)](
            q,
            k,
            encoder.query_weight,
            encoder.query_bias,
            encoder.key_weight,
            encoder.key_bias,
            residual,
            planes,
            Stored(units, slots, scales, encoder.scale_step, tally),
            scratch.partial,
            scratch.arrived,
            tokens,
            q.stride(0),
            q.stride(1),
            k.stride(0),
            k.stride(1),
            encoder.clip,
            KV_HEADS=kv_heads,
            GROUP=group,
            DIM=dim,
            BITS=bits,
            PLANES=encoder.query_bits,
            UNIT=unit,
            BLOCK_M=BLOCK_M,
            BLOCK_R=block_r,
            BLOCK_D=block_d,
            SPLITS=splits,
            BLOCK_1=block_1,
            BLOCK_2=block_2,
            BLOCK_KD=max(
                16, min(128 if wide else 32, 8192 // block_2, triton.next_power_of_2(dim))
            ),
            num_warps=WARPS,
            **chain_options(q.device),
        )
    )
    return planes.queries
