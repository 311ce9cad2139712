"""Select tokens of every request and KV head: the best scored, or the first and the last."""

from __future__ import annotations

import torch

from ..checks import expect
from .naive import select_naive
from .topk import select_streaming, select_topk

__all__ = ["select", "select_naive", "select_streaming", "select_topk"]


def select(
    scores: torch.Tensor,
    token_slots: torch.Tensor,
    seq_lens: torch.Tensor,
    budgets: int | torch.Tensor,
    *,
    k_max: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Select with the implementation for ``scores``'s device; see `select_naive` for the contract.

    On CUDA, an integer budget uses FlashInfer's top-k, which breaks ties at the threshold in any
    way and returns long rows in any order. A tensor of budgets uses `torch.topk` (`select_topk`),
    which breaks ties and orders as the reference does. All launches depend on shapes only.

    Parameters
    ----------
    scores, token_slots, seq_lens, budgets, k_max, out
        As in `select_naive`.

    Returns
    -------
    torch.Tensor
        int32 ``[bs, kv_heads, k_max]``, -1 padded.

    Raises
    ------
    ValueError
        As `select_naive`; on CUDA, lengths and tensor budgets are trusted.
    """
    if not scores.is_cuda:
        return select_naive(scores, token_slots, seq_lens, budgets, k_max=k_max, out=out)
    if isinstance(budgets, int):
        from .flashinfer_topk import select_flashinfer

        expect(budgets == k_max, "budgets", f"k_max = {k_max}", budgets)
        return select_flashinfer(scores, token_slots, seq_lens, k_max=k_max, out=out)
    return select_topk(scores, token_slots, seq_lens, budgets, k_max=k_max, out=out)
