"""How much of the attention a selection keeps, on captured queries and keys.

Attention mass is the softmax probability that the kept tokens hold, averaged
over the query heads of a KV head's group. Exact top-k by that average is the
ceiling of every selector that picks k tokens per KV head. Scores of coded
methods come from `hata_kernels.encoders.dense_scores`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TopK:
    """What a selector may keep.

    Parameters
    ----------
    k : int
        Tokens per query and KV head, sink and recent included.
    sink : int
        First tokens, always kept.
    recent : int
        Last tokens up to the query's own, always kept.
    """

    k: int
    sink: int
    recent: int


def group_attention(
    q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor, scale: float
) -> torch.Tensor:
    """True attention of each query, averaged over the heads that share a KV head.

    Parameters
    ----------
    q : torch.Tensor
        ``[N, Hq, D]`` float32, after RoPE.
    k : torch.Tensor
        ``[S, Hkv, D]`` float32, after RoPE.
    positions : torch.Tensor
        ``[N]`` int64; query ``n`` sees keys ``0 .. positions[n]``.
    scale : float
        Factor on q.k before softmax.

    Returns
    -------
    torch.Tensor
        ``[Hkv, N, S]`` float32, each row sums to 1.
    """
    count, heads, dim = q.shape
    kv_heads = k.shape[1]
    grouped = q.reshape(count, kv_heads, heads // kv_heads, dim).permute(1, 2, 0, 3)
    future = torch.arange(k.shape[0], device=k.device) > positions[:, None].to(k.device)
    total = torch.zeros(kv_heads, count, k.shape[0], device=q.device)
    for head in range(heads // kv_heads):  # one head of the group at a time: bounded memory
        logits = (grouped[:, head] * scale) @ k.permute(1, 2, 0)
        total += logits.masked_fill_(future, -torch.inf).softmax(-1)
    return total / (heads // kv_heads)


def always_kept(
    positions: torch.Tensor, length: int, sink: int, recent: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens that every selector keeps, and those that none can.

    Parameters
    ----------
    positions : torch.Tensor
        ``[N]`` int64.
    length : int
        Tokens, S.
    sink, recent : int
        First tokens, and last tokens up to the query's own.

    Returns
    -------
    forced, future : torch.Tensor
        ``[N, S]`` bool.
    """
    tokens = torch.arange(length, device=positions.device)
    last = positions[:, None]
    future = tokens > last
    return ((tokens < sink) | (tokens > last - recent)) & ~future, future


def competing(scores: torch.Tensor, forced: torch.Tensor, future: torch.Tensor) -> torch.Tensor:
    """Scores with forced tokens above all others, and future ones below."""
    # A huge finite value instead of inf keeps forced tokens above every score and sortable.
    ranked = scores.masked_fill(forced, torch.finfo(scores.dtype).max)
    return ranked.masked_fill_(future, -torch.inf)


def select(scores: torch.Tensor, positions: torch.Tensor, budget: TopK) -> torch.Tensor:
    """Pick the tokens that a selector keeps.

    Parameters
    ----------
    scores : torch.Tensor
        ``[Hkv, N, S]`` float32, higher is better.
    positions : torch.Tensor
        ``[N]`` int64.
    budget : TopK

    Returns
    -------
    torch.Tensor
        ``[Hkv, N, S]`` bool with ``min(k, positions[n] + 1)`` True in every row;
        ties at the threshold go to the earlier token, as in serving.
    """
    positions = positions.to(scores.device)
    forced, future = always_kept(positions, scores.shape[-1], budget.sink, budget.recent)
    ranked = competing(scores, forced, future)
    width = min(budget.k, scores.shape[-1])
    threshold = ranked.topk(width, dim=-1).values[..., -1:]
    above = ranked > threshold
    tied = (ranked == threshold) & ~future
    room = width - above.sum(-1, keepdim=True)
    return above | (tied & (tied.cumsum(-1) <= room))


def attention_mass(probabilities: torch.Tensor, selected: torch.Tensor) -> torch.Tensor:
    """Attention that a selection keeps.

    Parameters
    ----------
    probabilities : torch.Tensor
        ``[Hkv, N, S]`` float32, from `group_attention`.
    selected : torch.Tensor
        ``[Hkv, N, S]`` bool, from `select`.

    Returns
    -------
    torch.Tensor
        ``[Hkv, N]`` float32 in [0, 1].
    """
    return (probabilities * selected).sum(-1)
