"""Selectors: each ranks the cached tokens of every KV head for a query, from q and k alone.

A selector is one function of an `AttentionCase` that returns scores; which tokens it keeps under
a budget is decided for all of them alike in `selection_quality`. Trained codes are ranked by the
integers that serving ranks by (`hata_kernels.encoders.dense_scores`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True)
class AttentionCase:
    """Some queries of one layer on one sequence, with all keys and values.

    Attributes
    ----------
    layer : int
    q : torch.Tensor
        ``[N, Hq, D]`` float32, after RoPE.
    k : torch.Tensor
        ``[S, Hkv, D]`` float32, after RoPE.
    v : torch.Tensor
        ``[S, Hkv, Dv]`` float32.
    positions : torch.Tensor
        ``[N]`` int64; query ``n`` sees keys ``0 .. positions[n]``.
    scale : float
        What the model multiplies q.k with before softmax.
    """

    layer: int
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    positions: torch.Tensor
    scale: float

    @property
    def grouped(self) -> torch.Tensor:
        """Queries by the KV head that their head shares: ``[Hkv, G, N, D]``."""
        return self.q.unflatten(1, (self.k.shape[1], -1)).permute(1, 2, 0, 3)

    @cached_property
    def future(self) -> torch.Tensor:
        """``[N, S]`` bool: keys that a query does not see."""
        return torch.arange(len(self.k), device=self.k.device) > self.positions[:, None]

    @cached_property
    def logits(self) -> torch.Tensor:
        """``[Hkv, G, N, S]`` float32, scaled q.k; -inf for keys that a query does not see."""
        keys = self.k.permute(1, 2, 0).unsqueeze(1)
        return (self.grouped * self.scale @ keys).masked_fill_(self.future, -torch.inf)


@dataclass(frozen=True)
class Selector:
    """A selector as the tables name it.

    Attributes
    ----------
    name : str
    method : str
    bits : str
        Bits per token and KV head that are stored for the ranking, or read for it where it works
        on the KV cache itself; a key's scale included. Empty for exact scores and streaming.
    scores : callable
        From an `AttentionCase` to float32 ``[Hkv, N, S]``, or ``[Hq, N, S]`` where every query
        head selects for itself. Higher is better; what a query does not see may be anything
        but NaN.
    left_out : dict of int to torch.Tensor, optional
        By layer, ``[Hq, RATIOS]``: weights of the mean of the values left out
        (`hata_kernels.attend.left_out`), with which the output is judged. None: without it.
    weights : str
        The set that `left_out` is of.
    """

    name: str
    method: str
    bits: str
    scores: Callable[[AttentionCase], torch.Tensor]
    left_out: dict[int, torch.Tensor] | None = None
    weights: str = ""


def exact(case: AttentionCase) -> torch.Tensor:
    """True attention, averaged over the query heads of the group.

    The ceiling of the attention mass that any selection per KV head can keep.

    Returns
    -------
    torch.Tensor
        ``[Hkv, N, S]``.
    """
    return case.logits.softmax(-1).mean(1)


def exact_per_head(case: AttentionCase) -> torch.Tensor:
    """True scores of every query head, each with a selection of its own.

    A reference above the ceiling: serving it would read up to G times the tokens, because the
    heads of a group share keys and values.

    Returns
    -------
    torch.Tensor
        ``[Hq, N, S]``.
    """
    return case.logits.flatten(0, 1)


def streaming(case: AttentionCase) -> torch.Tensor:
    """The first tokens and, for the rest of the budget, the last (Xiao et al., arXiv 2309.17453).

    Returns
    -------
    torch.Tensor
        ``[Hkv, N, S]``, the position of the token.
    """
    length, kv_heads = case.k.shape[:2]
    tokens = torch.arange(length, device=case.k.device, dtype=torch.float32)
    return tokens.expand(kv_heads, len(case.q), length)


def quest_bounds(case: AttentionCase, page: int) -> torch.Tensor:
    """Upper bound of the scaled q.k of every page of keys.

    Tang et al., "Quest", arXiv 2406.10774, section 3.3: of each page the least and the largest
    value of every channel are kept; the bound adds up the larger product per channel.

    Parameters
    ----------
    case : AttentionCase
    page : int
        Tokens.

    Returns
    -------
    torch.Tensor
        ``[Hkv, G, N, ceil(S / page)]``. The last page may hold fewer tokens.
    """
    # Repeating the last key fills its page without changing what the page spans.
    missing = -len(case.k) % page
    keys = torch.cat([case.k, case.k[-1:].expand(missing, -1, -1)]).unflatten(0, (-1, page))
    low, high = keys.amin(1).permute(1, 2, 0), keys.amax(1).permute(1, 2, 0)  # [Hkv, D, pages]
    q = case.grouped * case.scale
    return q.clamp_min(0) @ high.unsqueeze(1) + q.clamp_max(0) @ low.unsqueeze(1)


def quest(case: AttentionCase, page: int) -> torch.Tensor:
    """Quest's page scores, given to every token of the page.

    Kept as favourable to Quest as one selection per KV head allows. The bounds of the group's
    heads are averaged: on SmolLM2-135M-Instruct their mean keeps more attention than their
    maximum, and as much as the mean of their softmax over pages. The page of the current token
    counts as recent and comes before every other; it needs no bound. A budget that is no multiple
    of the page takes part of one more page, in the order of positions. What the summaries cost is
    2 x 16 bits per channel and page, so 32 D / page bits per token.

    Parameters
    ----------
    case : AttentionCase
    page : int
        Tokens; the paper's is 16.

    Returns
    -------
    torch.Tensor
        ``[Hkv, N, S]``.
    """
    pages = torch.arange(-(-len(case.k) // page), device=case.k.device)
    current = (case.positions // page)[:, None]
    scores = quest_bounds(case, page).mean(1)
    # Below the largest number, which is that of sink and recent tokens.
    scores.masked_fill_(pages == current, torch.finfo(scores.dtype).max / 2)
    return scores.repeat_interleave(page, dim=-1)[..., : len(case.k)]


def loki(case: AttentionCase, basis: torch.Tensor) -> torch.Tensor:
    """Attention by q.k in the first principal components of the keys, averaged over the group.

    Singhania et al., "Loki", arXiv 2406.02542, its post-rotary variant, one basis per KV head and
    tokens chosen singly. Serving would keep the cache in this basis and read the first d
    channels of every key: nothing more is stored, but 16 d bits per token are read.

    Parameters
    ----------
    case : AttentionCase
    basis : torch.Tensor
        ``[Hkv, D, d]`` from `KeyStatistics.basis`.

    Returns
    -------
    torch.Tensor
        ``[Hkv, N, S]``.
    """
    keys = (case.k.transpose(0, 1) @ basis).transpose(1, 2).unsqueeze(1)
    logits = (case.grouped * case.scale @ basis.unsqueeze(1)) @ keys
    return logits.masked_fill_(case.future, -torch.inf).softmax(-1).mean(1)


class KeyStatistics:
    """Covariance of the keys of every layer and KV head, gathered from calibration texts.

    Only ``[Hkv, D, D]`` numbers per layer are held, however long the texts are.
    """

    def __init__(self) -> None:
        self._sums: dict[int, list[torch.Tensor]] = {}
        self._counts: dict[int, int] = {}

    def add(self, layer: int, k: torch.Tensor) -> None:
        """Count in the keys ``[S, Hkv, D]`` of one sequence, after RoPE."""
        keys = k.double().transpose(0, 1)
        parts = [keys.sum(1), keys.transpose(1, 2) @ keys]
        for held, part in zip(self._sums.setdefault(layer, parts), parts, strict=True):
            if held is not part:
                held += part
        self._counts[layer] = self._counts.get(layer, 0) + len(k)

    def basis(self, layer: int, channels: int) -> torch.Tensor:
        """Directions of the largest variance, as orthonormal columns.

        Parameters
        ----------
        layer : int
        channels : int
            At most D.

        Returns
        -------
        torch.Tensor
            ``[Hkv, D, channels]`` float32. Keys are not centred before they are projected: that
            would add the same number to all scores of a query.
        """
        total, products = self._sums[layer]
        mean = total / self._counts[layer]
        covariance = products / self._counts[layer] - mean.unsqueeze(2) * mean.unsqueeze(1)
        directions = torch.linalg.eigh(covariance).eigenvectors  # rising variance
        return directions[..., -channels:].flip(-1).float()
