"""CPU encoders of a decode step: its keys, then its queries."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..checks import expect
from .naive import check_encode, encode_naive
from .naive_planes import check_planes, encode_planes_naive
from .naive_residual import check_residual, encode_residual_naive
from .scales import check_scales

if TYPE_CHECKING:
    from .triton_step import StepScratch


def check_step(
    q: torch.Tensor,
    k: torch.Tensor,
    weight: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor | None,
    scale_step: torch.Tensor | None,
    scale_of: str,
) -> int:
    """Check what queries and keys of a step must share, and the scales.

    Returns
    -------
    int
        As `hata_kernels.encode.scales.check_scales`.

    Raises
    ------
    ValueError
        When q and k are not of the same tokens and dtype, k does not have one head per KV head of
        ``weight``, or scales do not fit.
    """
    kv_heads = weight.shape[0]
    expect(q.shape[0] == k.shape[0], "q.shape[0]", k.shape[0], q.shape[0])
    expect(q.dtype == k.dtype, "q.dtype", k.dtype, q.dtype)
    expect(k.shape[1] == kv_heads, "k.shape[1]", f"{kv_heads} KV heads", k.shape[1])
    return check_scales(scales, scale_step, codes, kv_heads, scale_of)


def check_step_linear(
    q: torch.Tensor,
    k: torch.Tensor,
    weight: torch.Tensor,
    codes: torch.Tensor,
    slots: torch.Tensor,
    scales: torch.Tensor | None,
    scale_step: torch.Tensor | None,
) -> int:
    """Check the arguments of `encode_step_linear_naive` and of its Triton counterpart.

    Returns
    -------
    int
        The largest scale that fits; 0 without scales.

    Raises
    ------
    ValueError
        When a shape, dtype or device does not fit.
    """
    check_encode(q, weight, None, None, None)
    check_encode(k, weight, None, codes, slots)
    return check_step(q, k, weight, codes, scales, scale_step, "norm")


def encode_step_linear_naive(
    q: torch.Tensor,
    k: torch.Tensor,
    weight: torch.Tensor,
    *,
    codes: torch.Tensor,
    slots: torch.Tensor,
    scales: torch.Tensor | None = None,
    scale_step: torch.Tensor | None = None,
    tally: torch.Tensor | None = None,
) -> torch.Tensor:
    """Encode a step's keys into their slots, and return its queries' codes.

    `encode_naive` of ``k`` into ``codes``, with the keys' norms as scales, and of ``q``.

    Parameters
    ----------
    q, k : torch.Tensor
        float32, bfloat16 or float16 ``[T, kv_heads * G, D]`` and ``[T, kv_heads, D]``, of one
        dtype.
    weight : torch.Tensor
        ``[kv_heads, D, r]``, contiguous, r a multiple of 32. Products are computed in float32.
    codes : torch.Tensor
        int32 ``[S, kv_heads, r // 32]``, contiguous: the codes buffer.
    slots : torch.Tensor
        int64 or int32 ``[T]``: the code of key t is written to ``codes[slots[t]]``.
    scales : torch.Tensor, optional
        uint8 or int16 ``[S, kv_heads]``, contiguous: also write the keys' scales.
    scale_step : torch.Tensor, optional
        float32 ``[kv_heads]``, positive; needed with ``scales``.
    tally : torch.Tensor, optional
        See `hata_kernels.tally`.

    Returns
    -------
    torch.Tensor
        int32 ``[T, kv_heads * G, r // 32]``: the codes of the queries.

    Raises
    ------
    ValueError
        When a shape, dtype or device does not fit.
    """
    check_step_linear(q, k, weight, codes, slots, scales, scale_step)
    stored = {"out": codes, "slots": slots, "scales": scales, "scale_step": scale_step}
    encode_naive(k, weight, **stored, tally=tally)
    return encode_naive(q, weight)


def check_step_asymmetric(
    q: torch.Tensor,
    k: torch.Tensor,
    query_weight: torch.Tensor,
    query_bias: torch.Tensor,
    key_weight: torch.Tensor,
    key_bias: torch.Tensor,
    residual_weight: torch.Tensor | None,
    planes: int,
    codes: torch.Tensor,
    slots: torch.Tensor,
    scales: torch.Tensor | None,
    scale_step: torch.Tensor | None,
) -> tuple[tuple[int, ...], int]:
    """Check the arguments of `encode_step_asymmetric_naive` and of its Triton counterpart.

    Returns
    -------
    tuple of int
        Shape of the planes, ``(T, kv_heads * planes, r // 32)``.
    int
        The largest scale that fits; 0 without scales.

    Raises
    ------
    ValueError
        When a shape, dtype or device does not fit.
    """
    shape = check_planes(q, query_weight, query_bias, planes, None)
    if residual_weight is None:
        check_encode(k, key_weight, key_bias, codes, slots)
    else:
        check_residual(k, key_weight, key_bias, residual_weight, codes, slots)
    for name, have, want in (
        ("shape[0]", key_weight.shape[0], query_weight.shape[0]),
        ("shape[2]", key_weight.shape[2], query_weight.shape[2]),
        ("dtype", key_weight.dtype, query_weight.dtype),
    ):
        expect(have == want, f"key_weight.{name}", f"that of query_weight, {want}", have)
    return shape, check_step(q, k, key_weight, codes, scales, scale_step, "projections")


def encode_step_asymmetric_naive(
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
    """Encode a step's keys into their slots, and return its queries' planes.

    `encode_residual_naive` of ``k`` into ``codes``, or with one stage `encode_naive`, whose scales
    are those of projections, and `encode_planes_naive` of ``q``.

    Parameters
    ----------
    q, k : torch.Tensor
        float32, bfloat16 or float16 ``[T, kv_heads * G, D]`` and ``[T, kv_heads, D]``, of one
        dtype.
    query_weight, query_bias : torch.Tensor
        ``[kv_heads, G * D, r]`` and ``[kv_heads, r]``, contiguous, r a multiple of 32. Products
        are computed in float32.
    key_weight, key_bias : torch.Tensor
        ``[kv_heads, D, r]``, of the dtype of ``query_weight``, and ``[kv_heads, r]``, contiguous.
    residual_weight : torch.Tensor or None
        ``[kv_heads, r / 2, r / 2]``, contiguous, of the dtype of ``key_weight``, for two stages.
    planes : int
        B, 1 to 8.
    clip : float
        Multiple of the rms that the largest level stands for.
    codes, slots, scales, scale_step, tally
        As in `encode_step_linear_naive`.
    scratch : StepScratch, optional
        Scratch of the Triton kernel; not used here.

    Returns
    -------
    torch.Tensor
        int32 ``[T, kv_heads * B, r // 32]``: plane p of KV head h is row ``h * B + p``.

    Raises
    ------
    ValueError
        When a shape, dtype or device does not fit.
    """
    keys = (key_weight, key_bias, residual_weight)
    where = (codes, slots, scales, scale_step)
    check_step_asymmetric(q, k, query_weight, query_bias, *keys, planes, *where)
    stored = {"out": codes, "slots": slots, "scales": scales, "scale_step": scale_step}
    stored["tally"] = tally
    if residual_weight is None:
        encode_naive(k, key_weight, bias=key_bias, **stored, scale_of="projections")
    else:
        encode_residual_naive(k, *keys, **stored)
    return encode_planes_naive(q, query_weight, query_bias, planes=planes, clip=clip)
