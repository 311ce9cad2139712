"""What the layers of one decode step share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from hata_sglang.config import Budget, LayerPlan
from hata_sglang.metrics import COUNTERS


@dataclass
class Batch:
    """The rows of one decode step, as SGLang's scheduler knows them.

    Attributes
    ----------
    req_to_token : torch.Tensor
        int32 ``[max_requests, max_context]``: slots of every request in position order.
    rows : torch.Tensor
        int64 ``[bs]``: each row's request, an index into `req_to_token`.
    seq_lens : torch.Tensor
        ``[bs]`` on the device, context length in tokens including the current one.
    seq_lens_cpu : torch.Tensor
        The same numbers on the host.
    """

    req_to_token: torch.Tensor
    rows: torch.Tensor
    seq_lens: torch.Tensor
    seq_lens_cpu: torch.Tensor


def count_step(plans: Iterable[LayerPlan], seq_lens_cpu: torch.Tensor) -> None:
    """Add one decode step to this process's counters.

    Parameters
    ----------
    plans : iterable of LayerPlan
        The sparse layers.
    seq_lens_cpu : torch.Tensor
        ``[bs]`` host lengths of the real rows, without CUDA-graph padding.
    """
    context = int(seq_lens_cpu.sum())
    attended: dict = {}
    for plan in plans:
        if plan.budget not in attended:
            attended[plan.budget] = int(counts(plan.budget, seq_lens_cpu).sum())
        COUNTERS.tokens_in_context += context
        COUNTERS.tokens_attended += attended[plan.budget]
    COUNTERS.decode_steps += any(a < context for a in attended.values())


def counts(budget: Budget, seq_lens: torch.Tensor) -> torch.Tensor:
    """Tokens attended per row and KV head, ``min(seq_len, budget)``: int32 ``[bs]``."""
    return torch.minimum(budget.tokens_tensor(seq_lens), seq_lens).to(torch.int32)
