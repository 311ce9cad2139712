"""What the layers of one decode step share."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hata_sglang.config import Budget


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


def counts(budget: Budget, seq_lens: torch.Tensor) -> torch.Tensor:
    """Tokens attended per row and KV head, ``min(seq_len, budget)``: int32 ``[bs]``."""
    return torch.minimum(budget.tokens_tensor(seq_lens), seq_lens).to(torch.int32)
