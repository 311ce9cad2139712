"""Captures of one layer, arranged for training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from hata_sglang.training.capture import Capture


#: Scores of queries with keys that are made at a time, to bound the memory.
SCORES = 2**26


@dataclass(frozen=True)
class SequenceData:
    """Queries and keys of one sequence by KV head, of one layer or of several with all their heads.

    Attributes
    ----------
    q : torch.Tensor
        ``[Hkv, N, G, D]`` float32.
    k : torch.Tensor
        ``[Hkv, S, D]`` float32.
    positions : torch.Tensor
        ``[N]`` int64.
    scale : float
    log_normaliser : torch.Tensor
        ``[Hkv, N, G]`` float32: log of the softmax denominator of every query
        over all keys it sees. With it, attention on a few keys costs only these.
    """

    q: torch.Tensor
    k: torch.Tensor
    positions: torch.Tensor
    scale: float
    log_normaliser: torch.Tensor

    @classmethod
    def of(cls, capture: Capture, device: torch.device) -> SequenceData:
        """Arrange a capture on `device`."""
        count, heads, dim = capture.q.shape
        kv_heads = capture.k.shape[1]
        q = capture.q.to(device).reshape(count, kv_heads, heads // kv_heads, dim).transpose(0, 1)
        k = capture.k.to(device).transpose(0, 1).contiguous()
        positions = capture.positions.to(device)
        tokens = torch.arange(k.shape[1], device=device)
        parts = []
        for rows in torch.arange(count, device=device).split(
            max(1, SCORES // (heads * len(tokens)))
        ):
            logits = torch.einsum("hngd,hsd->hngs", q[:, rows] * capture.scale, k)
            future = tokens > positions[rows, None, None]
            parts.append(logits.masked_fill_(future, -torch.inf).logsumexp(-1))
        return cls(q.contiguous(), k, positions, capture.scale, torch.cat(parts, dim=1))


@dataclass(frozen=True)
class TrainingBatch:
    """Some queries and some keys of one sequence.

    Attributes
    ----------
    q : torch.Tensor
        ``[Hkv, n, G, D]`` float32.
    k : torch.Tensor
        ``[Hkv, s, D]`` float32.
    logits : torch.Tensor
        ``[Hkv, n, G, s]`` float32, scaled q.k.
    attention : torch.Tensor
        ``[Hkv, n, s]`` float32, attention averaged over the group; zero for
        keys that a query does not see.
    key_positions, query_positions : torch.Tensor
        Int64 ``[s]`` and ``[n]``.
    sequence : int
        Which element of the data this was drawn from.
    rows : torch.Tensor
        Int64 ``[n]``, which of its queries.
    """

    q: torch.Tensor
    k: torch.Tensor
    logits: torch.Tensor
    attention: torch.Tensor
    key_positions: torch.Tensor
    query_positions: torch.Tensor
    sequence: int
    rows: torch.Tensor

    @property
    def visible(self) -> torch.Tensor:
        """``[n, s]`` bool: keys that each query sees."""
        return self.key_positions <= self.query_positions[:, None]

    def eligible(self, sink: int, recent: int) -> torch.Tensor:
        """``[n, s]`` bool: visible keys that are neither among the `sink` first nor `recent` last.

        Those are kept whatever their score, so only the others compete for the budget.
        """
        last = self.query_positions[:, None]
        return (self.key_positions >= sink) & (self.key_positions <= last - recent)


def sample_batch(
    data: list[SequenceData], queries: int, keys: int, generator: torch.Generator
) -> TrainingBatch:
    """Draw one sequence, then some of its queries and of its keys, uniformly.

    Parameters
    ----------
    data : list of SequenceData
    queries, keys : int
        At most this many of each.
    generator : torch.Generator
        On the CPU, whatever the device of `data`.
    """
    index = int(torch.randint(len(data), (1,), generator=generator))
    sequence = data[index]
    device = sequence.k.device
    rows = torch.randperm(sequence.q.shape[1], generator=generator)[:queries].to(device)
    columns = torch.randperm(sequence.k.shape[1], generator=generator)[:keys].sort().values
    columns = columns.to(device)
    q, k = sequence.q[:, rows], sequence.k[:, columns]
    logits = torch.einsum("hngd,hsd->hngs", q * sequence.scale, k)
    attention = (logits - sequence.log_normaliser[:, rows, :, None]).exp().mean(2)
    positions = sequence.positions[rows]
    attention = attention.masked_fill(columns > positions[:, None], 0.0)
    return TrainingBatch(q, k, logits, attention, columns, positions, index, rows)


def scale_step(magnitudes: torch.Tensor, scale_bits: int) -> torch.Tensor:
    """Step of a per-key scale, such that 99.9 % of the training keys fit its integers.

    Parameters
    ----------
    magnitudes : torch.Tensor
        ``[Hkv, T]`` float32, not negative: what the scale stands for, of many keys.
    scale_bits : int
        8 or 16.

    Returns
    -------
    torch.Tensor
        ``[Hkv]`` float32, larger than 0.
    """
    # Not torch.quantile, which refuses more than 16 million numbers.
    rank = math.ceil(0.999 * magnitudes.shape[1])
    top = magnitudes.float().kthvalue(rank, dim=1).values
    return top.clamp_min(1e-12) / (2**scale_bits - 1)
