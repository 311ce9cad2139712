"""CPU attention over the selected slots, one request at a time."""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

from ..checks import expect_lengths, expect_tensor
from .checks import check_caches


def attend_naive(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor,
    counts: torch.Tensor,
    *,
    scale: float,
) -> torch.Tensor:
    """Attention of every request over its selected slots, a selection per KV head.

    Parameters
    ----------
    q : torch.Tensor
        ``[bs, q_heads, D]``, the dtype of the caches.
    k_cache, v_cache : torch.Tensor
        ``[slots, kv_heads, D]``, contiguous.
    slots : torch.Tensor
        int32 ``[bs, kv_heads, k]``; the first ``counts[b]`` entries of row b are valid.
    counts : torch.Tensor
        int32 or int64 ``[bs]``, values of 1 to k.
    scale : float
        Softmax scale.

    Returns
    -------
    torch.Tensor
        ``[bs, q_heads, D]``, dtype of ``q``.

    Raises
    ------
    ValueError
        When a shape, dtype, device or count does not fit.

    Notes
    -----
    A loop over requests, not one padded batch, on purpose: PyTorch splits the keys of a CPU
    attention call by batch size and thread count (float32, float16) and rounds masked calls
    differently, so in one call a request's result would depend on its neighbours. Called this way
    a request whose selection is its whole context in position order gets bit for bit what SGLang's
    torch_native backend computes, which makes the same call.
    """
    check_caches(q, k_cache, v_cache)
    (batch, q_heads, dim), kv_heads = q.shape, k_cache.shape[1]
    expect_tensor("slots", slots, shape=(batch, kv_heads, None), dtypes=(torch.int32,))
    expect_tensor("counts", counts, shape=(batch,), dtypes=(torch.int32, torch.int64))
    sizes = expect_lengths("counts", counts, slots.shape[2])

    keys, values = k_cache.view(-1, dim), v_cache.view(-1, dim)
    places = slots.long() * kv_heads + torch.arange(kv_heads).unsqueeze(1)
    out = torch.empty_like(q)
    for row, size in enumerate(sizes):
        own = places[row, :, :size].reshape(-1)
        row_keys = keys.index_select(0, own).view(1, kv_heads, size, dim)
        row_values = values.index_select(0, own).view(1, kv_heads, size, dim)
        query = q[row].view(1, q_heads, 1, dim)
        result = scaled_dot_product_attention(
            query, row_keys, row_values, scale=scale, enable_gqa=q_heads != kv_heads
        )
        out[row] = result.view(q_heads, dim)
    return out
