"""Triton encoder of a decode step of `AsymmetricEncoder`: its queries and keys in one launch.

A step has few tokens, so a launch costs more than what it computes, and the weights of the
queries are the most of its bytes: they are split over many programs.
"""

from __future__ import annotations

import torch
import triton

from ..bits import WORD_BITS
from ..chain import chain_options, most_cache
from ..checks import expect
from .checks import expect_bits, expect_rows
from .step_kernels import _asymmetric_step_kernel
from .triton import largest_scale

BLOCK_M = 16
WARPS = 4


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
        blocks, numbers = self._sizes(tokens, kv_heads, group, dim, bits)
        self.partial = torch.empty(numbers, device=device)
        # How many parts of a block are there; 0 between launches.
        self.arrived = torch.zeros(blocks, dtype=torch.int32, device=device)

    @staticmethod
    def _sizes(tokens: int, kv_heads: int, group: int, dim: int, bits: int) -> tuple[int, int]:
        block_r, _, splits = step_blocks(group, dim, bits)
        blocks = triton.cdiv(tokens, BLOCK_M) * kv_heads
        return blocks, blocks * splits * BLOCK_M * block_r

    @classmethod
    def bytes_for(cls, *sizes: int) -> int:
        """Bytes that scratch of these sizes takes: tokens, kv_heads, group, dim, bits."""
        return 4 * sum(cls._sizes(*sizes))


def step_blocks(group: int, dim: int, bits: int) -> tuple[int, int, int]:
    """Columns, entries and number of the parts of a query's projection."""
    block_r = triton.next_power_of_2(bits)
    block_d = max(16, min(128, 16384 // block_r))
    return block_r, block_d, triton.cdiv(group * dim, block_d)


def launch_step(encoder, q, k, codes, slots, scales, scratch, tally) -> torch.Tensor:
    """`AsymmetricEncoder.encode_step` of checked arguments, in one launch.

    Launches that follow one another may share ``scratch``.

    Raises
    ------
    ValueError
        When the last dimension of q or k is not contiguous, codes have more than 1024 bits, or the
        scratch is too small.
    """
    expect_rows(q=q, k=k)
    expect_bits(encoder.bits)
    tokens, bits, half = len(k), encoder.bits, encoder.bits // 2
    kv_heads, group, dim = encoder.num_kv_heads, encoder.group, encoder.head_dim
    planes, residual = encoder.query_bits, encoder.residual_weight
    shape = (tokens, kv_heads * planes, encoder.words)
    q_codes = torch.empty(shape, dtype=torch.int32, device=q.device)
    if tokens == 0:
        return q_codes
    if scratch is None:
        scratch = StepScratch(tokens, kv_heads, group, dim, bits, q.device)
    block_r, block_d, splits = step_blocks(group, dim, bits)
    blocks = triton.cdiv(tokens, BLOCK_M) * kv_heads
    room = min(scratch.arrived.numel(), scratch.partial.numel() // (splits * BLOCK_M * block_r))
    expect(room >= blocks, "scratch", f"{blocks} blocks of {BLOCK_M} tokens", room)
    same = q.dtype == encoder.query_weight.dtype
    wide = same and q.dtype != torch.float32
    unit = WORD_BITS if half % WORD_BITS == 0 or residual is None else WORD_BITS // 2
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
            q_codes,
            codes if unit == WORD_BITS else codes.view(torch.int16),
            slots,
            scales,
            encoder.scale_step,
            tally,
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
            PLANES=planes,
            TWO_STAGES=residual is not None,
            UNIT=unit,
            HAS_SCALES=scales is not None,
            MOST=largest_scale(scales),
            SAME_DTYPE=same,
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
    return q_codes
