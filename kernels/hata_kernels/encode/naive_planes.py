"""CPU encoder of asymmetric queries: project the group, quantise, pack planes."""

from __future__ import annotations

import torch

from ..bits import WORD_BITS, pack_bits
from ..checks import FLOATS, expect, expect_tensor
from .naive import project

MAX_PLANES = 8


def check_planes(
    q: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    planes: int,
    out: torch.Tensor | None,
) -> tuple[int, ...]:
    """Check the arguments of `encode_planes_naive` and of its Triton counterpart.

    Returns
    -------
    tuple of int
        Shape of the planes, ``(T, kv_heads * B, r // 32)``.

    Raises
    ------
    ValueError
        When a shape, dtype or device does not fit.
    """
    where = {"device": q.device, "contiguous": True}
    expect_tensor("q", q, shape=(None, None, None), dtypes=FLOATS)
    tokens, heads, dim = q.shape
    expect_tensor("weight", weight, shape=(None, None, None), dtypes=FLOATS, **where)
    kv_heads, size, bits = weight.shape
    expect(heads % kv_heads == 0, "q.shape[1]", f"a multiple of {kv_heads} KV heads", heads)
    whole = heads // kv_heads * dim
    expect(size == whole, "weight.shape[1]", f"G * D = {whole}", size)
    expect(bits > 0 and bits % WORD_BITS == 0, "weight.shape[2]", "a multiple of 32", bits)
    expect_tensor("bias", bias, shape=(kv_heads, bits), dtypes=FLOATS, **where)
    expect(1 <= planes <= MAX_PLANES, "planes", f"1 to {MAX_PLANES}", planes)
    shape = (tokens, kv_heads * planes, bits // WORD_BITS)
    if out is not None:
        expect_tensor("out", out, shape=shape, dtypes=(torch.int32,), **where)
    return shape


def query_levels(
    q: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *, planes: int, clip: float
) -> torch.Tensor:
    """Quantise one vector per KV head, the projection of its whole group of queries.

    Parameters are those of `encode_planes_naive`.

    Returns
    -------
    torch.Tensor
        int32 ``[T, kv_heads, r]``: with ``u = [q_1 .. q_G] @ weight + bias`` and
        ``step = clip * rms(u) / 2**(B-1)``, where a zero rms counts as 1, the levels
        ``clamp(floor(u / step), -2**(B-1), 2**(B-1) - 1)``.
    """
    whole = q.reshape(q.shape[0], weight.shape[0], weight.shape[1])
    u = project(whole, weight, bias)
    rms = u.square().mean(dim=-1, keepdim=True).sqrt()
    half = 2 ** (planes - 1)
    step = clip / half * torch.where(rms == 0, 1.0, rms)
    return (u / step).floor().clamp(-half, half - 1).int()


def level_planes(levels: torch.Tensor, planes: int) -> torch.Tensor:
    """Spread levels over bit-planes.

    Parameters
    ----------
    levels : torch.Tensor
        int32 ``[T, kv_heads, r]``, ``-2**(B-1)`` to ``2**(B-1) - 1``.
    planes : int
        B.

    Returns
    -------
    torch.Tensor
        bool ``[T, kv_heads, B, r]``; plane p holds bit p of ``level + 2**(B-1)``.
    """
    codes = levels + 2 ** (planes - 1)
    plane = torch.arange(planes, dtype=torch.int32, device=levels.device).unsqueeze(1)
    return (codes.unsqueeze(2) >> plane & 1).bool()


def encode_planes_naive(
    q: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    planes: int,
    clip: float,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Encode queries into the packed bit-planes of one quantised vector per KV head.

    Ours; `hata_kernels.encoders.AsymmetricEncoder` says what the levels stand for.

    Parameters
    ----------
    q : torch.Tensor
        float32, bfloat16 or float16 ``[T, kv_heads * G, D]``. The G queries of a KV head, one
        after the other, make one vector.
    weight : torch.Tensor
        ``[kv_heads, G * D, r]``, contiguous, r a multiple of 32. The product is computed in
        float32.
    bias : torch.Tensor
        ``[kv_heads, r]``, contiguous.
    planes : int
        B, 1 to 8.
    clip : float
        Multiple of the rms that the largest level stands for.
    out : torch.Tensor, optional
        int32 ``[T, kv_heads * B, r // 32]``, contiguous. Allocated when None.

    Returns
    -------
    torch.Tensor
        ``out``; plane p of KV head h is row ``h * B + p``.

    Raises
    ------
    ValueError
        When a shape, dtype or device does not fit.
    """
    check_planes(q, weight, bias, planes, out)
    levels = query_levels(q, weight, bias, planes=planes, clip=clip)
    codes = pack_bits(level_planes(levels, planes)).flatten(1, 2)
    return codes if out is None else out.copy_(codes)
