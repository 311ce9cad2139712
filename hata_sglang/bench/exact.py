"""Exact top-k in plain torch: the peer that scores every key by itself."""

from __future__ import annotations

import torch

from hata_sglang.bench.shapes import Scenario

#: More bytes of gathered keys and scores than this are not tried.
MAX_BYTES = 2 * 10**9


def scratch_bytes(scenario: Scenario) -> int:
    """Bytes of gathered keys (bf16), their places (int32), logits (bf16) and scores (float32)."""
    shape, tokens = scenario.shape, scenario.batch * scenario.context
    return tokens * (shape.kv_heads * (2 * shape.dim + 4) + (2 + 4) * shape.q_heads)


def exact_slots(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    token_slots: torch.Tensor,
    k: int,
    *,
    sink: int,
    recent: int,
) -> torch.Tensor:
    """Slots of the tokens that the group of query heads attends most, by matmul and ``torch.topk``.

    Parameters
    ----------
    q : torch.Tensor
        ``[bs, q_heads, D]``, floating point.
    k_cache : torch.Tensor
        ``[slots, kv_heads, D]``, the dtype of ``q``.
    token_slots : torch.Tensor
        int32 ``[bs, tokens]``; every request has as many tokens.
    k : int
        At most ``tokens``.
    sink, recent : int
        First and last tokens, always kept.

    Returns
    -------
    torch.Tensor
        int32 ``[bs, kv_heads, k]``, contiguous, in position order.
    """
    batch, tokens = token_slots.shape
    kv_heads, dim = k_cache.shape[1:]
    # Gathered head by head: a matmul over any other order would copy the keys once more.
    heads = torch.arange(kv_heads, dtype=torch.int32, device=q.device)
    places = token_slots[:, None, :] * kv_heads + heads[:, None]
    keys = k_cache.view(-1, dim).index_select(0, places.flatten())
    queries = q.reshape(batch * kv_heads, -1, dim) * dim**-0.5
    logits = torch.bmm(queries, keys.view(batch * kv_heads, tokens, dim).transpose(1, 2))
    scores = torch.softmax(logits, dim=-1, dtype=torch.float32).sum(dim=1)
    scores = scores.view(batch, kv_heads, tokens)
    scores[..., :sink] = float("inf")
    scores[..., tokens - recent :] = float("inf")
    best = scores.topk(k, dim=-1, sorted=False).indices.sort(dim=-1).values
    slots = token_slots[:, None, :].expand(-1, kv_heads, -1)
    return slots.gather(2, best).contiguous()
