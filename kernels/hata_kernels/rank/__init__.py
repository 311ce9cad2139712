"""Rank the tokens of every request and KV head by their codes, and select the best."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..rows.groups import RowGroups
from .buffers import RankBuffers, RankSizes, shared_values
from .naive import rank_naive

__all__ = ["RankBuffers", "RankSizes", "rank", "rank_naive", "shared_values"]


def rank(
    q_codes: torch.Tensor,
    codes: torch.Tensor,
    token_slots: torch.Tensor,
    seq_lens: torch.Tensor,
    budgets: torch.Tensor,
    *,
    plane_weights: Sequence[int],
    sink: int,
    recent: int,
    k_max: int,
    out: torch.Tensor | None = None,
    scales: torch.Tensor | None = None,
    scale_bits: int = 0,
    buffers: RankBuffers | None = None,
    groups: RowGroups | None = None,
) -> torch.Tensor:
    """Rank with the implementation for ``codes``'s device; see `rank_naive` for the contract.

    Both give the same, bit for bit. On CUDA `hata_kernels.rank.triton` says what may come before.
    """
    if codes.is_cuda:
        from .triton import rank_triton as implementation
    else:
        implementation = rank_naive
    return implementation(
        q_codes,
        codes,
        token_slots,
        seq_lens,
        budgets,
        plane_weights=plane_weights,
        sink=sink,
        recent=recent,
        k_max=k_max,
        out=out,
        scales=scales,
        scale_bits=scale_bits,
        buffers=buffers,
        groups=groups,
    )
