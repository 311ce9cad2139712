"""Triton encoder: project, take signs, pack and scatter, in one launch with the keys' scales."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .. import tally as counting
from ..checks import expect

ENCODED = tl.constexpr(counting.ENCODED)
MAX_BITS = 1024


class Stored(NamedTuple):
    """Where codes go, as a kernel takes it; what is None is no argument of it.

    Codes of rows, or of slots; scales of keys, their steps, and `hata_kernels.tally`.
    """

    codes: torch.Tensor
    slots: torch.Tensor | None = None
    scales: torch.Tensor | None = None
    scale_step: torch.Tensor | None = None
    tally: torch.Tensor | None = None


def expect_rows(weight: torch.Tensor, **given: torch.Tensor) -> None:
    """Raise ``ValueError`` unless keys or queries ``[T, H, D]`` are numbers as those of the weight
    (on a GPU both are the model's), the last dimension contiguous.
    """
    for name, x in given.items():
        expect(x.dtype == weight.dtype, f"{name}.dtype", weight.dtype, x.dtype)
        expect(x.stride(2) == 1, f"{name}.stride(2)", 1, x.stride(2))


def expect_bits(bits: int) -> None:
    """Raise ``ValueError`` for codes of more bits than one program holds."""
    expect(bits <= MAX_BITS, "bits", f"at most {MAX_BITS}", bits)


@triton.jit
def store_scales(stored, place, valid, size, head, KV_HEADS):
    """Round the sizes of rows of one KV head to its steps and store them in the rows' slots."""
    step = tl.load(stored.scale_step + head)
    # 16 bits are kept by an int16: its low ones, whatever the sign.
    dtype = stored.scales.dtype.element_ty
    MOST: tl.constexpr = 2**dtype.primitive_bitwidth - 1
    scale = tl.minimum(tl.floor(size / step + 0.5), MOST).to(tl.int32)
    tl.store(stored.scales + place * KV_HEADS + head, scale.to(dtype), mask=valid)


@triton.jit
def count_written(tally_ptr, place):
    """Add the keys written to slots ``[BLOCK_M]``; rows beyond the last have slot 0."""
    written = tl.sum((place > 0).to(tl.int32), axis=0)
    tl.atomic_add(tally_ptr + ENCODED, written.to(tl.int64))


# For 1 and for multiples of 16 Triton would compile the same anew.
@triton.jit(do_not_specialize=["rows"])
def _encode_kernel(
    first_block,
    first_part,
    x_ptr,
    weight_ptr,
    bias_ptr,
    stored,
    rows,
    x_stride_token,
    x_stride_head,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    BITS: tl.constexpr,
    OF_NORM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCKS_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program: BLOCK_M (token, group member) rows of one KV head, BLOCKS_R * BLOCK_R bits.

    The G query heads of a KV head share its weight, so they are rows of the same product: a
    decode batch of one still fills G rows of the tile. Scales are of norms with OF_NORM, else of
    projections. Also a part of other kernels, which call it in their programs from
    ``(first_block, any head, first_part)`` on.
    """
    block = tl.program_id(0) - first_block
    head = tl.program_id(1)
    part = tl.program_id(2) - first_part
    row = block * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = row < rows
    token = (row // GROUP).to(tl.int64)
    x_head = head * GROUP + row % GROUP
    x_rows = x_ptr + token * x_stride_token + x_head * x_stride_head
    weight_head = weight_ptr + head * DIM * BITS
    if stored.slots is not None:
        place = tl.load(stored.slots + token, mask=valid, other=0).to(tl.int64)
    else:
        place = token
    out_rows = stored.codes + (place * (KV_HEADS * GROUP) + x_head) * (BITS // 32)
    WORDS: tl.constexpr = BLOCK_R // 32
    word = tl.arange(0, WORDS)
    size = tl.zeros((BLOCK_M,), dtype=tl.float32)
    if OF_NORM and stored.scales is not None:
        # In a loop of its own: summed up between the products of the loop below, a few bits of
        # some keys came out wrong on sm_90 (Triton 3.6, DIM 128, bfloat16).
        for start in range(0, DIM, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            in_x = valid[:, None] & (d < DIM)[None, :]
            x = tl.load(x_rows[:, None] + d[None, :], mask=in_x, other=0).to(tl.float32)
            size += tl.sum(x * x, axis=1)

    for number in tl.static_range(BLOCKS_R):
        first = (part * BLOCKS_R + number) * BLOCK_R
        column = first + tl.arange(0, BLOCK_R)
        projection = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
        for start in range(0, DIM, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            in_x = valid[:, None] & (d < DIM)[None, :]
            x = tl.load(x_rows[:, None] + d[None, :], mask=in_x, other=0)
            w = tl.load(
                weight_head + d[:, None] * BITS + column[None, :], mask=(d < DIM)[:, None], other=0
            )
            # ieee: tf32 would drop 13 bits of float32 inputs and flip signs far from zero.
            projection = tl.dot(x, w, acc=projection, input_precision="ieee")
        if bias_ptr is not None:
            bias = tl.load(bias_ptr + head * BITS + column).to(tl.float32)
            projection += bias[None, :]
        if stored.scales is not None and not OF_NORM:
            size += tl.sum(tl.abs(projection), axis=1)
        bit = (projection > 0).to(tl.int32) << (tl.arange(0, BLOCK_R) % 32)[None, :]
        # The bits are disjoint, so the sum is their union; bit 31 makes it wrap to the sign bit.
        packed = tl.sum(tl.reshape(bit, (BLOCK_M, WORDS, 32)), axis=2)
        tl.store(out_rows[:, None] + first // 32 + word[None, :], packed, mask=valid[:, None])

    if stored.scales is not None:
        if OF_NORM:
            size = tl.sqrt(size)
        else:
            size = size / BITS
        store_scales(stored, place, valid, size, head, KV_HEADS)
    if stored.slots is not None and stored.tally is not None:  # noqa: SIM102 - when it is compiled
        if (head == 0) & (part == 0):
            count_written(stored.tally, place)


def encode_triton(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    out: torch.Tensor | None = None,
    slots: torch.Tensor | None = None,
    scales: torch.Tensor | None = None,
    scale_step: torch.Tensor | None = None,
    scale_of: str = "norm",
    tally: torch.Tensor | None = None,
) -> torch.Tensor:
    """Encode keys or queries: bit = (x @ weight + bias of its KV head > 0), packed into words.

    Parameters
    ----------
    x : torch.Tensor
        ``[T, H, D]``: keys (H = KV heads) or queries (H a multiple; head h uses the weight of KV
        head ``h // (H // kv_heads)``).
    weight, bias : torch.Tensor
        ``[kv_heads, D, r]`` and ``[kv_heads, r]``, contiguous.
    out : torch.Tensor, optional
        int32, contiguous: ``[T, H, r // 32]``, or with ``slots`` the codes buffer
        ``[S, H, r // 32]``. Allocated when None.
    slots : torch.Tensor, optional
        int64 or int32 ``[T]``: write token t to ``out[slots[t]]``. Repeated slots keep one of the
        codes (SGLang pads batches with the reserved slot 0).
    scales, scale_step : torch.Tensor, optional
        Of keys: see `Encoder.encode_keys` and `Encoder.key_scales`.
    scale_of : str
        What scales are of: ``"norm"``, or ``"projections"``, the mean of their absolute values.
    tally : torch.Tensor, optional
        See `hata_kernels.tally`; with ``slots``.

    Returns
    -------
    torch.Tensor
        ``out``.

    Raises
    ------
    ValueError
        When ``x``'s last dimension is not contiguous, or its dtype not the weight's.
    """
    tokens, heads, dim = x.shape
    kv_heads, _, bits = weight.shape
    group = heads // kv_heads
    expect_rows(weight, x=x)
    if out is None:
        out = torch.empty((tokens, heads, bits // 32), dtype=torch.int32, device=x.device)
    rows = tokens * group
    if rows == 0:
        return out
    wide = x.dtype != torch.float32
    block_m = min(64 if wide else 32, max(16, triton.next_power_of_2(rows)))
    # float32 products keep their operands in registers: smaller tiles avoid spills.
    block_r = next(size for size in ((128, 64, 32) if wide else (64, 32)) if bits % size == 0)
    block_d = min(64 if wide else 32, max(16, triton.next_power_of_2(dim)))
    # A scale may need every projection of its key, so one program computes all of them.
    blocks_r = 1 if scales is None else bits // block_r
    grid = (triton.cdiv(rows, block_m), kv_heads, bits // block_r // blocks_r)
    _encode_kernel[grid](
        0,
        0,
        x,
        weight,
        bias,
        Stored(out, slots, scales, scale_step, tally),
        rows,
        x.stride(0),
        x.stride(1),
        KV_HEADS=kv_heads,
        GROUP=group,
        DIM=dim,
        BITS=bits,
        OF_NORM=scale_of == "norm",
        BLOCK_M=block_m,
        BLOCK_R=block_r,
        BLOCKS_R=blocks_r,
        BLOCK_D=block_d,
        num_warps=4,
    )
    return out
