"""Select the best-scored tokens of every request and KV head (HATA, Algorithm 1, top-k)."""

from __future__ import annotations

import torch

from ..checks import expect
from .naive import select_naive

__all__ = ["select", "select_naive"]


def select(
    scores: torch.Tensor,
    token_slots: torch.Tensor,
    seq_lens: torch.Tensor,
    budgets: int | torch.Tensor,
    *,
    k_max: int,
    out: torch.Tensor | None = None,
    levels: int | None = None,
) -> torch.Tensor:
    """Select with the implementation for ``scores``'s device; see `select_naive` for the contract.

    On CUDA, an integer budget uses FlashInfer's top-k, which breaks ties at the threshold in any
    way and returns long rows in any order; a tensor of budgets uses the Triton counting select,
    which breaks ties and orders as the reference does and needs ``levels``. Both launches depend
    on shapes only.

    Parameters
    ----------
    scores, token_slots, seq_lens, budgets, k_max, out
        As in `select_naive`.
    levels : int, optional
        ``score_levels(G, r)``: scores are integers below it. Only the counting select needs it.

    Returns
    -------
    torch.Tensor
        int32 ``[bs, kv_heads, k_max]``, -1 padded.

    Raises
    ------
    ValueError
        As `select_naive`, and when budgets differ on CUDA and ``levels`` is not given.
    """
    if not scores.is_cuda:
        return select_naive(scores, token_slots, seq_lens, budgets, k_max=k_max, out=out)
    if isinstance(budgets, int):
        from .flashinfer_topk import select_flashinfer

        expect(budgets == k_max, "budgets", f"k_max = {k_max}", budgets)
        return select_flashinfer(scores, token_slots, seq_lens, k_max=k_max, out=out)
    from .triton import select_triton

    expect(levels is not None, "levels", "score_levels(group, bits)", levels)
    return select_triton(
        scores, token_slots, seq_lens, budgets, k_max=k_max, levels=levels, out=out
    )
