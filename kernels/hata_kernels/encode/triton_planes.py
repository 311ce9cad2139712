"""Triton encoder of asymmetric queries: project the group, quantise, pack planes, in one launch."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ..encoders.base import Queries
from ..score import distance
from .triton import expect_bits, expect_rows

DISTANCES, LEAST = tl.constexpr(distance.DISTANCES), tl.constexpr(distance.LEAST)


class Planes(NamedTuple):
    """Where queries go, as a kernel takes it: `Queries`, and `AsymmetricEncoder.score_bias`.

    What is None is no argument of it.
    """

    codes: torch.Tensor
    bias: torch.Tensor | None
    score_bias: torch.Tensor | None

    @classmethod
    def of(cls, encoder, tokens: int, device: torch.device) -> Planes:
        """Of so many queries that are still to be encoded."""
        kv_heads, bias = encoder.num_kv_heads, None
        rows = kv_heads * encoder.query_bits
        codes = torch.empty((tokens, rows, encoder.words), dtype=torch.int32, device=device)
        if encoder.score_bias is not None:
            shape = (tokens, kv_heads, distance.DISTANCES)
            bias = torch.empty(shape, dtype=torch.int32, device=device)
        return cls(codes, bias, encoder.score_bias)

    @property
    def queries(self) -> Queries:
        """What the encoder returns."""
        return Queries(self.codes, self.bias)


@triton.jit
def store_planes(
    u,
    out,
    token,
    valid,
    head,
    clip,
    KV_HEADS: tl.constexpr,
    BITS: tl.constexpr,
    PLANES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Quantise projections ``u [BLOCK_M, BLOCK_R]`` of one KV head, and store their planes; and
    their bias by distance, where they have one.
    """
    column = tl.arange(0, BLOCK_R)
    if out.bias is not None:
        distance = tl.arange(0, 64)
        known = distance < DISTANCES
        bias = tl.load(out.score_bias + head * DISTANCES + distance, mask=known, other=0)
    # Columns beyond the code are 0 and add nothing to the rms.
    rms = tl.sqrt(tl.sum(u * u, axis=1) / BITS)
    HALF: tl.constexpr = 2 ** (PLANES - 1)
    step = clip / HALF * tl.where(rms == 0, 1.0, rms)
    level = tl.floor(u / step[:, None])
    code = tl.minimum(tl.maximum(level, -HALF), HALF - 1).to(tl.int32) + HALF

    WORDS: tl.constexpr = BLOCK_R // 32
    word = tl.arange(0, WORDS)
    in_row = valid[:, None] & (word < BITS // 32)[None, :]
    for plane in tl.static_range(PLANES):
        bit = ((code >> plane) & 1) << (column % 32)[None, :]
        # The bits are disjoint, so the sum is their union; bit 31 makes it wrap to the sign bit.
        packed = tl.sum(tl.reshape(bit, (BLOCK_M, WORDS, 32)), axis=2)
        out_rows = out.codes + ((token * KV_HEADS + head) * PLANES + plane) * (BITS // 32)
        tl.store(out_rows[:, None] + word[None, :], packed, mask=in_row)
    if out.bias is not None:
        whole = tl.maximum(tl.floor(bias[None, :] / step[:, None] + 0.5), LEAST).to(tl.int32)
        bias_rows = out.bias + (token * KV_HEADS + head) * DISTANCES
        in_row = valid[:, None] & known[None, :]
        tl.store(bias_rows[:, None] + distance[None, :], whole, mask=in_row)


# For 1 and for multiples of 16 Triton would compile the same anew.
@triton.jit(do_not_specialize=["tokens"])
def _planes_kernel(
    q_ptr,
    weight_ptr,
    bias_ptr,
    out,
    tokens,
    q_stride_token,
    q_stride_head,
    clip,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    BITS: tl.constexpr,
    PLANES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program: BLOCK_M tokens of one KV head, all projections, because their rms is needed."""
    head = tl.program_id(1)
    token = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = token < tokens
    token = token.to(tl.int64)
    column = tl.arange(0, BLOCK_R)
    in_code = column < BITS
    q_rows = q_ptr + token * q_stride_token
    weight_head = weight_ptr + head * GROUP * DIM * BITS

    u = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
    for start in range(0, GROUP * DIM, BLOCK_D):
        # Entry e of the group's vector is number e % D of query head e // D.
        entry = start + tl.arange(0, BLOCK_D)
        inside = entry < GROUP * DIM
        place = (head * GROUP + entry // DIM) * q_stride_head + entry % DIM
        q = tl.load(
            q_rows[:, None] + place[None, :], mask=valid[:, None] & inside[None, :], other=0
        )
        w = tl.load(
            weight_head + entry[:, None] * BITS + column[None, :],
            mask=inside[:, None] & in_code[None, :],
            other=0,
        )
        # ieee: tf32 would drop 13 bits of float32 inputs and move levels.
        u = tl.dot(q, w, acc=u, input_precision="ieee")
    bias = tl.load(bias_ptr + head * BITS + column, mask=in_code, other=0).to(tl.float32)
    u += bias[None, :]
    store_planes(u, out, token, valid, head, clip, KV_HEADS, BITS, PLANES, BLOCK_M, BLOCK_R)


def launch_planes(encoder, q: torch.Tensor) -> Queries:
    """`AsymmetricEncoder.encode_queries`, of checked queries.

    Raises
    ------
    ValueError
        When q's last dimension is not contiguous, its dtype not the weights', or codes have more
        than 1024 bits.
    """
    expect_rows(encoder.query_weight, q=q)
    expect_bits(encoder.bits)
    tokens, (kv_heads, bits) = len(q), (encoder.num_kv_heads, encoder.bits)
    out = Planes.of(encoder, tokens, q.device)
    if tokens == 0:
        return out.queries
    block_m, block_r = 16, triton.next_power_of_2(bits)
    _planes_kernel[(triton.cdiv(tokens, block_m), kv_heads)](
        q,
        encoder.query_weight,
        encoder.query_bias,
        out,
        tokens,
        q.stride(0),
        q.stride(1),
        encoder.clip,
        KV_HEADS=kv_heads,
        GROUP=encoder.group,
        DIM=encoder.head_dim,
        BITS=bits,
        PLANES=encoder.query_bits,
        BLOCK_M=block_m,
        BLOCK_R=block_r,
        # Keeps a tile of weights within 32 KiB.
        BLOCK_D=max(16, min(64, 16384 // block_r)),
        num_warps=4 if block_r <= 128 else 8,
    )
    return out.queries
