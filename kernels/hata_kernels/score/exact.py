"""Scores by the exact attention that codes stand in for."""

from __future__ import annotations

import torch

from ..checks import FLOATS, expect, expect_lengths, expect_rows, expect_tensor
from .naive import force

#: Query heads per KV head that the GPU kernels take, at most.
MAX_GROUP = 16


def exact_score(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    token_slots: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    scale: float,
    sink: int,
    recent: int,
    out: torch.Tensor,
) -> torch.Tensor:
    """Score tokens by the attention the group really pays them: the ceiling of every selector.

    Score of (b, h, t) = sum over the G query heads of softmax over the request's tokens of
    ``scale * q . k``, in float32; forced tokens get +inf. On CUDA products are taken in the dtype
    of q and the cache and summed in float32, and the two launches depend on shapes only: safe to
    capture.

    Parameters
    ----------
    q : torch.Tensor
        ``[bs, q_heads, D]``, floating point.
    k_cache : torch.Tensor
        ``[slots, kv_heads, D]``, floating point.
    token_slots, seq_lens, sink, recent
        As in `score_naive`.
    scale : float
        Softmax scale.
    out : torch.Tensor
        float32 ``[bs, kv_heads, width]``, contiguous. Only ``out[b, :, :seq_lens[b]]`` is written.

    Returns
    -------
    torch.Tensor
        ``out``.

    Raises
    ------
    ValueError
        When a shape, dtype, device, ``sink`` or ``recent`` does not fit; on a CPU when a length
        does not; on CUDA when the head size is not 64, 96, 128 or 256, the group is larger than 16,
        q and the cache differ in dtype, or q's last dimension or the cache is not contiguous.
    """
    expect_tensor("k_cache", k_cache, shape=(None, None, None), dtypes=FLOATS)
    _, kv_heads, dim = k_cache.shape
    expect_tensor("q", q, shape=(None, None, dim), dtypes=FLOATS, device=k_cache.device)
    batch, q_heads, _ = q.shape
    expect(q_heads % kv_heads == 0, "q.shape[1]", f"a multiple of {kv_heads}", q_heads)
    expect_rows(token_slots, seq_lens, batch, sink, recent, k_cache.device)
    where = {"device": k_cache.device, "contiguous": True}
    expect_tensor("out", out, shape=(batch, kv_heads, None), dtypes=(torch.float32,), **where)
    width, wanted = token_slots.shape[1], f"at least out.shape[2] = {out.shape[2]}"
    expect(width >= out.shape[2], "token_slots.shape[1]", wanted, width)
    run = exact_reference
    if k_cache.is_cuda:
        from .exact_triton import launch_exact as run
    run(q, k_cache, token_slots, seq_lens, scale, sink, recent, out)
    return out


def exact_reference(q, k_cache, token_slots, seq_lens, scale, sink, recent, out) -> None:
    """`exact_score` by PyTorch, of checked arguments."""
    kv_heads = k_cache.shape[1]
    queries = q.float().unflatten(1, (kv_heads, -1)) * scale
    for row, length in enumerate(expect_lengths("seq_lens", seq_lens, out.shape[2])):
        keys = k_cache.index_select(0, token_slots[row, :length]).float()
        logits = torch.bmm(queries[row], keys.permute(1, 2, 0))
        scores = out[row, :, :length]
        torch.sum(torch.softmax(logits, dim=-1), dim=1, out=scores)
        force(scores, sink, recent, float("inf"))
