"""CPU attention with the arguments of `attend_gather`, and the checks that both make."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..checks import FLOATS, expect, expect_lengths, expect_tensor
from ..tally import count_attended
from .naive import attend_naive

if TYPE_CHECKING:
    from .gather import AttendBuffers

FP8 = torch.float8_e4m3fn


def check_caches(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, *others: torch.dtype
) -> None:
    """Check queries ``[bs, q_heads, D]`` and caches ``[slots, kv_heads, D]`` of one layer.

    Parameters
    ----------
    q, k_cache, v_cache : torch.Tensor
    *others : torch.dtype
        That caches may have instead of that of ``q``.

    Raises
    ------
    ValueError
        When a shape, dtype, device or contiguity does not fit.
    """
    where = k_cache.device
    expect_tensor("k_cache", k_cache, shape=(None, None, None), contiguous=True)
    _, kv_heads, dim = k_cache.shape
    expect_tensor("q", q, shape=(None, None, dim), dtypes=FLOATS, device=where)
    expect_tensor("k_cache", k_cache, dtypes=(q.dtype, *others))
    same = {"dtypes": (k_cache.dtype,), "device": where, "contiguous": True}
    expect_tensor("v_cache", v_cache, shape=k_cache.shape, **same)
    expect(q.shape[1] % kv_heads == 0, "q.shape[1]", f"a multiple of {kv_heads}", q.shape[1])


def check_gather(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor,
    seq_lens: torch.Tensor,
    budgets: torch.Tensor,
    logit_cap: float,
    k_scale: float,
    v_scale: float,
    out: torch.Tensor | None,
) -> torch.Tensor:
    """Check the arguments of both implementations; return ``out``, allocated when None.

    Raises
    ------
    ValueError
        When a shape, dtype, device, contiguity, ``logit_cap`` or a scale does not fit.
    """
    check_caches(q, k_cache, v_cache, FP8)
    where, batch, kv_heads = k_cache.device, q.shape[0], k_cache.shape[1]
    int32 = {"dtypes": (torch.int32,), "device": where, "contiguous": True}
    expect_tensor("slots", slots, shape=(batch, kv_heads, None), **int32)
    expect(slots.shape[2] >= 1, "slots.shape[2]", "at least 1", slots.shape[2])
    lengths = {"dtypes": (torch.int32, torch.int64), "device": where, "contiguous": True}
    expect_tensor("seq_lens", seq_lens, shape=(batch,), **lengths)
    expect_tensor("budgets", budgets, shape=(batch,), **int32)
    expect(logit_cap >= 0, "logit_cap", "at least 0", logit_cap)
    for name, value in (("k_scale", k_scale), ("v_scale", v_scale)):
        # A tensor would have to be read from the device, which a captured step cannot do.
        kind = type(value).__name__
        expect(isinstance(value, (int, float)), name, "a number", kind)
        expect(value > 0, name, "more than 0", value)
    if out is None:
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
    expect_tensor("out", out, shape=q.shape, dtypes=(q.dtype,), device=where, contiguous=True)
    return out


def attend_gather_naive(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor,
    seq_lens: torch.Tensor,
    budgets: torch.Tensor,
    *,
    scale: float,
    logit_cap: float = 0.0,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    out: torch.Tensor | None = None,
    buffers: AttendBuffers | None = None,
    tally: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of every request over its selected slots, a selection per KV head.

    Parameters
    ----------
    q : torch.Tensor
        ``[bs, q_heads, D]`` float32, bfloat16 or float16.
    k_cache, v_cache : torch.Tensor
        ``[slots, kv_heads, D]``, contiguous, of the dtype of ``q`` or float8_e4m3fn.
    slots : torch.Tensor
        int32 ``[bs, kv_heads, k_max]``, contiguous: what `select` gives. The entries of row b from
        ``min(seq_lens[b], budgets[b])`` on are not read; those before may repeat.
    seq_lens, budgets : torch.Tensor
        int32 or int64, and int32, ``[bs]``, contiguous: request b attends
        ``min(seq_lens[b], budgets[b])`` slots of every KV head, 1 to k_max.
    scale : float
        Softmax scale.
    logit_cap : float
        See `attend_naive`. It is applied to the logits of the dequantised keys.
    k_scale, v_scale : float
        A cached number times its scale is the key's or the value's, as SGLang stores fp8 caches.
        Numbers, not tensors.
    out : torch.Tensor, optional
        ``[bs, q_heads, D]``, contiguous, the dtype of ``q``. Allocated when None.
    buffers : AttendBuffers, optional
        Where the Triton implementation keeps partial results; there are none here.
    tally : torch.Tensor, optional
        See `hata_kernels.tally`: counts the requests, their contexts and what is attended.

    Returns
    -------
    torch.Tensor
        ``out``.

    Raises
    ------
    ValueError
        When a shape, dtype, device, contiguity, count, ``logit_cap`` or a scale does not fit.

    Notes
    -----
    fp8 caches are attended to in float32; otherwise see `attend_naive` for what is bit for bit.
    """
    out = check_gather(
        q, k_cache, v_cache, slots, seq_lens, budgets, logit_cap, k_scale, v_scale, out
    )
    if k_cache.dtype == FP8:
        q, k_cache, v_cache = q.float(), k_cache.float(), v_cache.float()
    counts, most = torch.minimum(seq_lens, budgets), slots.shape[2]
    expect_lengths("seq_lens and budgets", counts, most, f"1 to {most} tokens of every row")
    count_attended(tally, slots, seq_lens, counts)
    options = {"scale": scale * k_scale, "logit_cap": logit_cap}
    result = attend_naive(q, k_cache, v_cache, slots, counts, **options)
    return out.copy_(result if v_scale == 1 else result * v_scale)
