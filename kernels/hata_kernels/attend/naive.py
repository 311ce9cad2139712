"""CPU attention over the selected slots, one request at a time."""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

from ..checks import expect, expect_lengths, expect_tensor


def attend_naive(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor,
    counts: torch.Tensor,
    *,
    scale: float,
    logit_cap: float = 0.0,
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
    logit_cap : float
        When positive, logits become ``logit_cap * tanh(logits / logit_cap)`` (soft capping, as in
        Gemma 2). 0 turns it off.

    Returns
    -------
    torch.Tensor
        ``[bs, q_heads, D]``, dtype of ``q``.

    Raises
    ------
    ValueError
        When a shape, dtype, device, count or ``logit_cap`` does not fit.

    Notes
    -----
    A loop over requests, not one padded batch, on purpose: PyTorch splits the keys of a CPU
    attention call by batch size and thread count (float32, float16) and rounds masked calls
    differently, so in one call a request's result would depend on its neighbours. Called this way
    a request whose selection is its whole context in position order gets bit for bit what SGLang's
    torch_native backend computes, which makes the same call.
    """
    expect_tensor("k_cache", k_cache, shape=(None, None, None), contiguous=True)
    total, kv_heads, dim = k_cache.shape
    expect_tensor(
        "v_cache", v_cache, shape=(total, kv_heads, dim), dtypes=(k_cache.dtype,), contiguous=True
    )
    expect_tensor("q", q, shape=(None, None, dim), dtypes=(k_cache.dtype,), device=k_cache.device)
    batch, q_heads, _ = q.shape
    expect(q_heads % kv_heads == 0, "q.shape[1]", f"a multiple of {kv_heads}", q_heads)
    expect_tensor("slots", slots, shape=(batch, kv_heads, None), dtypes=(torch.int32,))
    expect_tensor("counts", counts, shape=(batch,), dtypes=(torch.int32, torch.int64))
    expect(logit_cap >= 0, "logit_cap", "at least 0", logit_cap)
    k = slots.shape[2]
    sizes = expect_lengths("counts", counts, k)

    keys, values = k_cache.view(-1, dim), v_cache.view(-1, dim)
    places = slots.long() * kv_heads + torch.arange(kv_heads).unsqueeze(1)
    out = torch.empty_like(q)
    for row, size in enumerate(sizes):
        own = places[row, :, :size].reshape(-1)
        row_keys = keys.index_select(0, own).view(1, kv_heads, size, dim)
        row_values = values.index_select(0, own).view(1, kv_heads, size, dim)
        query = q[row].view(1, q_heads, 1, dim)
        if logit_cap > 0:
            result = _capped_attention(query, row_keys, row_values, scale, logit_cap)
        else:
            result = scaled_dot_product_attention(
                query, row_keys, row_values, scale=scale, enable_gqa=q_heads != kv_heads
            )
        out[row] = result.view(q_heads, dim)
    return out


def _capped_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    logit_cap: float,
) -> torch.Tensor:
    """Soft-capped attention in float32, which PyTorch's fused call does not offer.

    Shapes: query ``[1, q_heads, 1, D]``, keys and values ``[1, kv_heads, n, D]``.
    """
    grouped = query.float().view(keys.shape[1], -1, query.shape[3])
    logits = torch.bmm(grouped, keys[0].float().transpose(1, 2)) * scale
    weights = torch.softmax(logit_cap * torch.tanh(logits / logit_cap), dim=-1)
    return torch.bmm(weights, values[0].float()).to(query.dtype).view(query.shape)


def write_pages_naive(slots: torch.Tensor, indptr: torch.Tensor, pages: torch.Tensor) -> None:
    """Reference of `hata_kernels.attend.pages.write_pages`: a loop over rows on the CPU.

    Parameters
    ----------
    slots, indptr, pages : torch.Tensor
        As in `write_pages`.
    """
    _, kv_heads, k = slots.shape
    for row, selected in enumerate(slots.flatten(0, 1)):
        begin, end = indptr[row : row + 2].tolist()
        count = min(end - begin, k)
        pages[begin : begin + count] = selected[:count].clamp(min=0) * kv_heads + row % kv_heads
