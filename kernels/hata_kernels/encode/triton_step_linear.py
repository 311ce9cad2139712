"""Triton encoder of a decode step of `LinearEncoder`: its queries and keys in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..chain import chain_options, most_cache, start_next, wait_for_last
from .triton import Stored, _encode_kernel, expect_rows

BLOCK_M = 16
WARPS = 4


@triton.jit
def _linear_step_kernel(
    q_ptr,
    k_ptr,
    weight_ptr,
    of_queries,
    of_keys,
    tokens,
    q_blocks,
    q_stride_token,
    q_stride_head,
    k_stride_token,
    k_stride_head,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program: a block of queries or of keys of one KV head."""
    start_next(PDL)
    wait_for_last(PDL)
    SCALED: tl.constexpr = of_keys.scales is not None
    if tl.program_id(0) < q_blocks:
        _encode_kernel(
            0,
            0,
            q_ptr,
            weight_ptr,
            None,
            of_queries,
            tokens * GROUP,
            q_stride_token,
            q_stride_head,
            KV_HEADS,
            GROUP,
            DIM,
            BITS,
            False,
            BLOCK_M,
            BLOCK_R,
            1,
            BLOCK_D,
        )
    elif (tl.program_id(2) == 0) or (not SCALED):
        # A key's scale is stored by the program that has all of its bits.
        _encode_kernel(
            q_blocks,
            0,
            k_ptr,
            weight_ptr,
            None,
            of_keys,
            tokens,
            k_stride_token,
            k_stride_head,
            KV_HEADS,
            1,
            DIM,
            BITS,
            True,
            BLOCK_M,
            BLOCK_R,
            BITS // BLOCK_R if SCALED else 1,
            BLOCK_D,
        )


def launch_step(encoder, q, k, codes, slots, scales, tally) -> torch.Tensor:
    """`LinearEncoder.encode_step` of checked arguments, in one launch.

    Raises
    ------
    ValueError
        When the last dimension of q or k is not contiguous, or their dtype not the weight's.
    """
    tokens, weight, bits = len(k), encoder.weight, encoder.bits
    expect_rows(weight, q=q, k=k)
    kv_heads, group, dim = encoder.num_kv_heads, encoder.group, encoder.head_dim
    shape = (tokens, kv_heads * group, encoder.words)
    q_codes = torch.empty(shape, dtype=torch.int32, device=q.device)
    if tokens == 0:
        return q_codes
    wide = q.dtype != torch.float32
    block_r = next(size for size in ((64, 32) if wide else (32,)) if bits % size == 0)
    q_blocks, k_blocks = triton.cdiv(tokens * group, BLOCK_M), triton.cdiv(tokens, BLOCK_M)
    most_cache(
        _linear_step_kernel[(q_blocks + k_blocks, kv_heads, bits // block_r)](
            q,
            k,
            weight,
            Stored(q_codes),
            Stored(codes, slots, scales, encoder.scale_step, tally),
            tokens,
            q_blocks,
            q.stride(0),
            q.stride(1),
            k.stride(0),
            k.stride(1),
            KV_HEADS=kv_heads,
            GROUP=group,
            DIM=dim,
            BITS=bits,
            BLOCK_M=BLOCK_M,
            BLOCK_R=block_r,
            BLOCK_D=min(128 if wide else 32, max(16, triton.next_power_of_2(dim))),
            num_warps=WARPS,
            **chain_options(q.device),
        )
    )
    return q_codes
