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


def always_kept(positions: torch.Tensor, length: int, sink: int, recent: int) -> torch.Tensor:
    """Tokens that every selector keeps.

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
    torch.Tensor
        ``[N, S]`` bool; False for tokens that a query does not see.
    """
    tokens, last = torch.arange(length, device=positions.device), positions[:, None]
    return ((tokens < sink) | (tokens > last - recent)) & (tokens <= last)


def select(scores: torch.Tensor, positions: torch.Tensor, budget: TopK) -> torch.Tensor:
    """Pick the tokens that a selector keeps, best first.

    Parameters
    ----------
    scores : torch.Tensor
        ``[R, N, S]`` float32, without NaN; higher is better.
    positions : torch.Tensor
        ``[N]`` int64, on the same device.
    budget : TopK

    Returns
    -------
    torch.Tensor
        Int64 ``[R, N, min(k, S)]``: token numbers, those that are always kept first, then by
        falling score; equal scores in the order of positions, as in serving. Behind all that a
        query sees stand tokens that it does not, which have no attention.
    """
    length = scores.shape[-1]
    future = torch.arange(length, device=scores.device) > positions[:, None]
    # A huge finite value instead of inf keeps forced tokens above every score and sortable.
    forced = always_kept(positions, length, budget.sink, budget.recent)
    ranked = scores.masked_fill(forced, torch.finfo(scores.dtype).max)
    ranked.masked_fill_(future, -torch.inf)
    return ranked.sort(dim=-1, descending=True, stable=True).indices[..., : budget.k]


def attention_mass(probabilities: torch.Tensor, selected: torch.Tensor) -> torch.Tensor:
    """Attention that a selection keeps.

    Parameters
    ----------
    probabilities : torch.Tensor
        ``[Hkv, N, S]`` float32, from `group_attention`.
    selected : torch.Tensor
        ``[Hkv, N, k]`` int64, from `select`.

    Returns
    -------
    torch.Tensor
        ``[Hkv, N]`` float32 in [0, 1].
    """
    return probabilities.gather(-1, selected).sum(-1)
