"""Score cached keys against the current queries (HATA, section 3.2, Algorithm 1)."""

from __future__ import annotations

import torch

from .naive import exact_score_naive, score_dtype, score_levels, score_naive

__all__ = ["exact_score_naive", "score", "score_dtype", "score_levels", "score_naive"]


def score(
    q_codes: torch.Tensor,
    codes: torch.Tensor,
    token_slots: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    sink: int,
    recent: int,
    out: torch.Tensor,
) -> torch.Tensor:
    """Score with the implementation for ``codes``'s device; see `score_naive` for the contract.

    On CUDA the launch depends on shapes only (width is ``out.shape[2]``), so it can be captured in
    a CUDA graph and replayed with other lengths.
    """
    if codes.is_cuda:
        from .triton import score_triton

        return score_triton(
            q_codes, codes, token_slots, seq_lens, sink=sink, recent=recent, out=out
        )
    return score_naive(q_codes, codes, token_slots, seq_lens, sink=sink, recent=recent, out=out)
