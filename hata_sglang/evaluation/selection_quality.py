"""How good a selection is: attention mass, recall of exact top-k, error of attention's output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch

from hata_kernels.attend import left_out_weight
from hata_sglang.evaluation.selectors import AttentionCase, exact
from hata_sglang.training.attention_mass import TopK, always_kept, select

#: Numbers that are gathered at once, to bound the memory.
BLOCK = 2**24


@dataclass(frozen=True)
class Quality:
    """Means over queries, and over the query heads of each KV head: ``[Hkv]`` float32 each.

    Attributes
    ----------
    mass : torch.Tensor
        Attention that the kept tokens hold, in [0, 1].
    relative_mass : torch.Tensor
        The same as a fraction of what exact top-k of the group keeps under the same budget.
    recall : torch.Tensor
        Share of exact top-k's tokens that are kept, of those that are not sink or recent
        (everyone keeps these); 1 where there are no others.
    output_error : torch.Tensor
        L2 distance between attention's output as serving computes it, over the kept tokens and, if
        asked for, with the mean of the values left out, and over all tokens, divided by the norm of
        the latter.
    """

    mass: torch.Tensor
    relative_mass: torch.Tensor
    recall: torch.Tensor
    output_error: torch.Tensor

    def cpu(self) -> Quality:
        """The same numbers in the host's memory."""
        return Quality(*(getattr(self, each.name).cpu() for each in fields(self)))


class Judge:
    """Judges selections of one `AttentionCase`.

    Parameters
    ----------
    case : AttentionCase
    sink, recent : int
        First tokens, and last tokens up to the query's own, that are always kept.
    budgets : sequence of torch.Tensor
        Int ``[N]`` each: tokens per query and KV head, sink and recent included, and at least as
        many as these. A query that sees fewer tokens keeps all.
    """

    def __init__(
        self, case: AttentionCase, sink: int, recent: int, budgets: Sequence[torch.Tensor]
    ) -> None:
        self.case = case
        self.forced = always_kept(case.positions, len(case.k), sink, recent)
        self.budgets = [torch.minimum(k, case.positions + 1) for k in budgets]
        self.width = int(torch.stack(self.budgets).max())
        self._widest = TopK(self.width, sink, recent)
        self._norms = case.logits.logsumexp(-1)
        values = case.v.transpose(0, 1).unsqueeze(1)
        # Float64, because sums over thousands of values are subtracted from each other.
        self._sums = values.double().cumsum(2)[:, :, case.positions]  # [Hkv, 1, N, Dv]
        self._output = case.logits.softmax(-1) @ values  # [Hkv, G, N, Dv]
        order = select(exact(case), case.positions, self._widest)
        # Rank of every token in exact top-k; those behind the widest budget count as out of it.
        ranks = torch.arange(self.width, device=order.device).expand_as(order)
        self._exact_ranks = torch.full(
            (*order.shape[:2], len(case.k)), self.width, device=order.device
        ).scatter_(-1, order, ranks)
        self._exact_mass = [quality[0] for quality in self._measure(order)]

    def judge(self, scores: torch.Tensor, left_out: torch.Tensor | None = None) -> list[Quality]:
        """Measure what the best-scored tokens are worth.

        Parameters
        ----------
        scores : torch.Tensor
            ``[Hkv, N, S]`` float32, or ``[Hq, N, S]`` where every query head selects for itself.
        left_out : torch.Tensor, optional
            ``[Hq, RATIOS]``: mixes the mean of the values left out into the output.

        Returns
        -------
        list of Quality
            One per budget.
        """
        found = self._measure(select(scores, self.case.positions, self._widest), left_out)
        return [
            Quality(mass, mass / ceiling, recall, error)
            for (mass, recall, error), ceiling in zip(found, self._exact_mass, strict=True)
        ]

    def _measure(
        self, order: torch.Tensor, left_out: torch.Tensor | None = None
    ) -> list[tuple[torch.Tensor, ...]]:
        """Mass, recall and output error per budget, each ``[Hkv]``."""
        kv_heads = self.case.k.shape[1]
        order = order.unflatten(0, (kv_heads, -1))  # [Hkv, G or 1, N, width]
        numbers = order.shape[1] * self.width * self.case.v.shape[-1]
        blocks = torch.arange(order.shape[2], device=order.device).split(max(1, BLOCK // numbers))
        heads = []
        for head in range(kv_heads):
            own = None if left_out is None else left_out.unflatten(0, (kv_heads, -1))[head]
            parts = [self._block(head, order[head, :, rows], rows, own) for rows in blocks]
            # [budgets, 3, queries] of every block
            heads.append(torch.cat(parts, dim=-1).mean(-1))
        return [tuple(budget) for budget in torch.stack(heads, dim=-1)]

    def _block(
        self, head: int, order: torch.Tensor, rows: torch.Tensor, left_out: torch.Tensor | None
    ) -> torch.Tensor:
        """As `_measure`, for one KV head and some queries: ``[budgets, 3, n]``."""
        case = self.case
        own = case.logits[head, :, rows]  # [G, n, S]
        logits = own.gather(-1, order.expand(len(own), -1, -1))
        values = case.v[:, head][order]  # [G or 1, n, width, Dv]
        output = self._output[head, :, rows]
        ranks = self._exact_ranks[head, rows].expand(len(order), -1, -1).gather(-1, order)
        free = ~self.forced[rows].expand(len(order), -1, -1).gather(-1, order)
        forced = self.forced[rows].sum(-1)
        place = torch.arange(self.width, device=order.device)
        found = []
        for budget in self.budgets:
            k = budget[rows]
            kept = place < k[:, None]
            inside = logits.masked_fill(~kept, -torch.inf)
            mass = (inside.logsumexp(-1) - self._norms[head, :, rows]).exp().mean(0)
            hits = (kept & free & (ranks < k[:, None])).sum(-1).float().mean(0)
            wanted = k - forced
            recall = torch.where(wanted > 0, hits / wanted.clamp_min(1), 1.0)
            sparse = torch.einsum("gnw,gnwd->gnd", inside.softmax(-1), values)
            if left_out is not None:
                seen = case.positions[rows] + 1
                selected = torch.einsum("nw,gnwd->gnd", kept.float(), values)
                mean = (self._sums[head, :, rows] - selected) / (seen - k).clamp_min(1)[:, None]
                weight = left_out_weight(left_out, seen, k).T[..., None]
                sparse = torch.lerp(sparse, mean.float().expand_as(sparse), weight)
            error = (sparse - output).norm(dim=-1) / output.norm(dim=-1)
            found.append(torch.stack([mass, recall, error.mean(0)]))
        return torch.stack(found)
