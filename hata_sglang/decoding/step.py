"""What one decode step works on: the rows that its layers share, and what a layer keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

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


class LayerCache(NamedTuple):
    """What one layer keeps of every token, by slot.

    Attributes
    ----------
    keys, values : torch.Tensor
        ``[slots, Hkv, D]``; keys after RoPE.
    codes : torch.Tensor or None
        int32 ``[slots, Hkv, bits // 32]``; None where the method keeps no codes.
    scales : torch.Tensor or None
        uint8 or int16 ``[slots, Hkv]`` beside the codes; None where the encoder has no scales.
    """

    keys: torch.Tensor
    values: torch.Tensor
    codes: torch.Tensor | None = None
    scales: torch.Tensor | None = None


def counts(budget: Budget, seq_lens: torch.Tensor) -> torch.Tensor:
    """Tokens attended per row and KV head, ``min(seq_len, budget)``: int32 ``[bs]``."""
    return torch.minimum(budget.tokens_tensor(seq_lens), seq_lens).to(torch.int32)
