"""What the mean of the values left out should weigh, and what it is worth, on captured values.

See `hata_kernels.attend.left_out`: attention over a selection is mixed with the mean of the values
that the selection leaves out, by a constant per query head and ratio of tokens to selected ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from hata_kernels.attend import RATIOS, left_out_weight
from hata_sglang.training.capture import Capture


@dataclass(frozen=True)
class Outputs:
    """Attention of the queries of one capture, over all tokens and over selected ones.

    Attributes
    ----------
    whole, selected : torch.Tensor
        ``[Hkv, G, N, Dv]`` float32: over all tokens, and over the selected ones alone.
    left_out : torch.Tensor
        ``[Hkv, 1, N, Dv]`` float32: the mean of the values that are not selected; 0 where all are.
    seq_lens, counts : torch.Tensor
        Int64 ``[N]``: tokens that a query sees, and that are selected.
    """

    whole: torch.Tensor
    selected: torch.Tensor
    left_out: torch.Tensor
    seq_lens: torch.Tensor
    counts: torch.Tensor

    def error(self, weights: torch.Tensor | None = None) -> torch.Tensor:
        """Relative L2 error of the output: the mean over queries and the heads of a group.

        Parameters
        ----------
        weights : torch.Tensor, optional
            ``[Hq, RATIOS]`` of the mean of the values left out. None: it is not mixed in.

        Returns
        -------
        torch.Tensor
            ``[Hkv]``.
        """
        out = self.selected
        if weights is not None:
            weight = left_out_weight(weights, self.seq_lens, self.counts).T
            out = torch.lerp(out, self.left_out, weight.reshape(*out.shape[:3], 1))
        return ((out - self.whole).norm(dim=-1) / self.whole.norm(dim=-1)).mean((1, 2))


def outputs(
    capture: Capture, order: torch.Tensor, counts: Sequence[torch.Tensor]
) -> Iterator[Outputs]:
    """Attend over the first tokens of an order, for several numbers of them.

    Parameters
    ----------
    capture : Capture
        With values.
    order : torch.Tensor
        Int64 ``[Hkv, N, S]``: all tokens, best first (`attention_mass.select`).
    counts : sequence of torch.Tensor
        Int64 ``[N]`` each: how many are selected, at most what a query sees.
    """
    (length, kv_heads), device = capture.k.shape[:2], capture.k.device
    seq_lens = capture.positions + 1
    seen = torch.arange(length, device=device) < seq_lens[:, None]
    found: list[list[tuple[torch.Tensor, ...]]] = [[] for _ in counts]
    # One KV head at a time, to bound the memory.
    for head, queries in enumerate(capture.q.unflatten(1, (kv_heads, -1)).unbind(1)):
        logits = queries.transpose(0, 1) * capture.scale @ capture.k[:, head].T  # [G, N, S]
        logits.masked_fill_(~seen, -torch.inf)
        values = capture.v[:, head]
        whole = logits.softmax(-1) @ values
        ranks = torch.empty_like(order[head])
        ranks.scatter_(1, order[head], torch.arange(length, device=device).expand_as(ranks))
        for parts, count in zip(found, counts, strict=True):
            kept = ranks < count[:, None]
            selected = logits.masked_fill(~kept, -torch.inf).softmax(-1) @ values
            rest = seen & ~kept
            mean = rest.float() @ values / rest.sum(1, keepdim=True).clamp_min(1)
            parts.append((whole, selected, mean[None]))
    for parts, count in zip(found, counts, strict=True):
        yield Outputs(*map(torch.stack, zip(*parts, strict=True)), seq_lens, count)


class LeastSquares:
    """The weights of the mean that bring attention over selections nearest to that over all tokens.

    Per query head and ratio: with o the true output, s that over a selection and m the mean of the
    values left out, c = sum <o - s, m - s> / sum |m - s|^2, within 0 and 1.
    """

    def __init__(self) -> None:
        self._products: torch.Tensor | float = 0.0
        self._squares: torch.Tensor | float = 0.0

    @staticmethod
    def counts(seq_lens: torch.Tensor) -> list[torch.Tensor]:
        """Tokens that are selected at every ratio but 1, at least one each."""
        return [(seq_lens >> power).clamp_min(1) for power in range(1, RATIOS)]

    @staticmethod
    def ends(seq_lens: torch.Tensor) -> int:
        """Sink tokens, and recent ones, at most: no more than half of the smallest selection."""
        return max(1, int(seq_lens.min()) >> (RATIOS + 1))

    def add(self, found: Sequence[Outputs]) -> None:
        """Count in the outputs of one capture at `counts`."""
        steps = [(own.left_out - own.selected, own.whole - own.selected) for own in found]
        self._products += torch.stack([(step * error).sum((2, 3)) for step, error in steps], -1)
        self._squares += torch.stack([step.square().sum((2, 3)) for step, _ in steps], -1)

    def weights(self) -> torch.Tensor:
        """Float32 ``[Hq, RATIOS]``; 0 at the first ratio."""
        found = (self._products / self._squares.clamp_min(1e-30)).clamp(0, 1).flatten(0, 1)
        return torch.nn.functional.pad(found, (1, 0))
