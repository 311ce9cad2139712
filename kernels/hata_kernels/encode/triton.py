"""Triton encoder: project, take signs, pack and scatter in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..checks import expect
from .naive import check_encode


@triton.jit
def _encode_kernel(
    x_ptr,
    weight_ptr,
    out_ptr,
    slots_ptr,
    rows,
    x_stride_token,
    x_stride_head,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    BITS: tl.constexpr,
    HAS_SLOTS: tl.constexpr,
    SAME_DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program: BLOCK_M (token, group member) rows of one KV head, BLOCK_R projections.

    The G query heads of a KV head share its weight, so they are rows of the same product: a
    decode batch of one still fills G rows of the tile.
    """
    head = tl.program_id(1)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    first = tl.program_id(2) * BLOCK_R
    valid = row < rows
    token = (row // GROUP).to(tl.int64)
    x_head = head * GROUP + row % GROUP
    x_rows = x_ptr + token * x_stride_token + x_head * x_stride_head
    column = first + tl.arange(0, BLOCK_R)
    weight_head = weight_ptr + head * DIM * BITS

    projection = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
    for start in range(0, DIM, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        x = tl.load(x_rows[:, None] + d[None, :], mask=valid[:, None] & (d < DIM)[None, :], other=0)
        w = tl.load(
            weight_head + d[:, None] * BITS + column[None, :], mask=(d < DIM)[:, None], other=0
        )
        if not SAME_DTYPE:
            x = x.to(tl.float32)
            w = w.to(tl.float32)
        # ieee: tf32 would drop 13 bits of float32 inputs and flip signs far from zero.
        projection = tl.dot(x, w, acc=projection, input_precision="ieee")

    WORDS: tl.constexpr = BLOCK_R // 32
    bit = (projection > 0).to(tl.int32) << (tl.arange(0, BLOCK_R) % 32)[None, :]
    # The bits are disjoint, so the sum is their union; bit 31 makes it wrap to the sign bit.
    packed = tl.sum(tl.reshape(bit, (BLOCK_M, WORDS, 32)), axis=2)
    if HAS_SLOTS:
        place = tl.load(slots_ptr + token, mask=valid, other=0).to(tl.int64)
    else:
        place = token
    out_rows = out_ptr + (place * (KV_HEADS * GROUP) + x_head) * (BITS // 32) + first // 32
    word = tl.arange(0, WORDS)
    tl.store(out_rows[:, None] + word[None, :], packed, mask=valid[:, None])


def encode_triton(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    out: torch.Tensor | None = None,
    slots: torch.Tensor | None = None,
) -> torch.Tensor:
    """Encode keys or queries on the GPU; same contract as `encode_naive`.

    ``x`` may be a view whose last dimension is contiguous, as a slice of a fused QKV projection.
    ``weight`` in ``x``'s dtype uses the tensor cores (bf16, fp16) with float32 accumulation; in
    another dtype both are converted to float32 first.

    Raises
    ------
    ValueError
        As `encode_naive`, and when ``x``'s last dimension is not contiguous.
    """
    group, words = check_encode(x, weight, out, slots)
    tokens, heads, dim = x.shape
    expect(x.stride(2) == 1, "x.stride(2)", 1, x.stride(2))
    kv_heads, _, bits = weight.shape
    if out is None:
        out = torch.empty((tokens, heads, words), dtype=torch.int32, device=x.device)
    rows = tokens * group
    if rows == 0:
        return out
    same = x.dtype == weight.dtype
    wide = same and x.dtype != torch.float32
    block_m = min(64 if wide else 32, max(16, triton.next_power_of_2(rows)))
    # float32 products keep their operands in registers: smaller tiles avoid spills.
    block_r = next(size for size in ((128, 64, 32) if wide else (64, 32)) if bits % size == 0)
    block_d = min(64 if wide else 32, max(16, triton.next_power_of_2(dim)))
    grid = (triton.cdiv(rows, block_m), kv_heads, bits // block_r)
    _encode_kernel[grid](
        x,
        weight,
        out,
        slots,
        rows,
        x.stride(0),
        x.stride(1),
        KV_HEADS=kv_heads,
        GROUP=group,
        DIM=dim,
        BITS=bits,
        HAS_SLOTS=slots is not None,
        SAME_DTYPE=same,
        BLOCK_M=block_m,
        BLOCK_R=block_r,
        BLOCK_D=block_d,
        num_warps=4,
    )
    return out
