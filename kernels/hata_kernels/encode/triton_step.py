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
from .step_kernels import _asymmetric_step_kernel
from .triton import largest_scale
from .triton_planes import MAX_BITS

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


def encode_step_asymmetric(
    q: torch.Tensor,
    k: torch.Tensor,
    query_weight: torch.Tensor,
    query_bias: torch.Tensor,
    key_weight: torch.Tensor,
    key_bias: torch.Tensor,
    residual_weight: torch.Tensor | None,
    *,
    planes: int,
    clip: float,
    codes: torch.Tensor,
    slots: torch.Tensor,
    scales: torch.Tensor | None = None,
    scale_step: torch.Tensor | None = None,
    scratch: StepScratch | None = None,
    tally: torch.Tensor | None = None,
) -> torch.Tensor:
    """Encode a step's keys into their slots, and return its queries' planes, in one launch.

    Parameters
    ----------
    q, k : torch.Tensor
        ``[T, kv_heads * G, D]`` and ``[T, kv_heads, D]``, of one dtype.
    query_weight, query_bias, planes, clip
        As in `encode_planes_triton`.
    key_weight, key_bias, residual_weight, codes, slots, scales, scale_step, tally
        As in `encode_residual_triton`, or with one stage, where ``residual_weight`` is None, as in
        `encode_triton`.
    scratch : StepScratch, optional
        For at least T tokens of this shape; shared by launches that follow one another.

    Returns
    -------
    torch.Tensor
        int32 ``[T, kv_heads * B, r // 32]``: as `encode_planes_triton`.

    Raises
    ------
    ValueError
        When the last dimension of q or k is not contiguous, r is more than 1024, or the scratch is
        too small.
    """
    expect(q.stride(2) == 1, "q.stride(2)", 1, q.stride(2))
    expect(k.stride(2) == 1, "k.stride(2)", 1, k.stride(2))
    tokens, kv_heads, dim = k.shape
    bits, half = key_weight.shape[2], key_weight.shape[2] // 2
    expect(bits <= MAX_BITS, "key_weight.shape[2]", f"at most {MAX_BITS}", bits)
    shape = (tokens, kv_heads * planes, bits // WORD_BITS)
    q_codes = torch.empty(shape, dtype=torch.int32, device=q.device)
    if tokens == 0:
        return q_codes
    group = q.shape[1] // kv_heads
    if scratch is None:
        scratch = StepScratch(tokens, kv_heads, group, dim, bits, q.device)
    block_r, block_d, splits = step_blocks(group, dim, bits)
    blocks = triton.cdiv(tokens, BLOCK_M) * kv_heads
    room = min(scratch.arrived.numel(), scratch.partial.numel() // (splits * BLOCK_M * block_r))
    expect(room >= blocks, "scratch", f"{blocks} blocks of {BLOCK_M} tokens", room)
    same = q.dtype == query_weight.dtype
    wide = same and q.dtype != torch.float32
    unit = WORD_BITS if half % WORD_BITS == 0 or residual_weight is None else WORD_BITS // 2
    block_2 = triton.next_power_of_2(half)
    block_1 = min(block_2, 64 if wide else 32)
    if residual_weight is None:
        block_1 = next(size for size in ((128, 64, 32) if wide else (32,)) if bits % size == 0)
    most_cache(
        _asymmetric_step_kernel[(triton.cdiv(tokens, BLOCK_M), kv_heads, splits + 1)](
            q,
            k,
            query_weight,
            query_bias,
            key_weight,
            key_bias,
            residual_weight,
            q_codes,
            codes if unit == WORD_BITS else codes.view(torch.int16),
            slots,
            scales,
            scale_step,
            tally,
            scratch.partial,
            scratch.arrived,
            tokens,
            q.stride(0),
            q.stride(1),
            k.stride(0),
            k.stride(1),
            float(clip),
            KV_HEADS=kv_heads,
            GROUP=group,
            DIM=dim,
            BITS=bits,
            PLANES=planes,
            TWO_STAGES=residual_weight is not None,
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
