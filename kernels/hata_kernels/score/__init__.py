"""Score cached keys against the current queries: by codes, or by exact attention."""

from __future__ import annotations

import torch

from .exact import MAX_GROUP, exact_score_naive
from .levels import score_dtype, score_levels
from .naive import score_naive

__all__ = [
    "MAX_GROUP",
    "exact_score",
    "exact_score_naive",
    "score_dtype",
    "score_levels",
    "score_naive",
]


def exact_score(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    token_slots: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    scale: float,
    sink: int,
    recent: int,
    out: torch.Tensor,
) -> torch.Tensor:
    """Score with the implementation for ``k_cache``'s device; see `exact_score_naive`.

    On CUDA the two launches depend on shapes only: safe to capture.
    """
    if k_cache.is_cuda:
        from .exact_triton import exact_score_triton as run
    else:
        run = exact_score_naive
    return run(q, k_cache, token_slots, seq_lens, scale=scale, sink=sink, recent=recent, out=out)
