"""Attend over the selected tokens only (HATA, section 3.2, Algorithm 1, last step), or over all.

`attend` gathers and attends, on a CPU or a GPU, with nothing planned on the host. `SparseDecode`
is FlashInfer's kernels instead, which plan their work on the host once per step, so it is an object
with `plan` and `run`. `attend_dense` is for layers that select nothing: it attends over whole
contexts, and reads a prefix that several requests share once.
"""

from __future__ import annotations

import torch

from ..rows import RowGroups
from .dense import DenseBuffers, attend_dense_triton, fits_dense
from .dense_naive import attend_dense_naive
from .gather import MAX_GROUP, AttendBuffers, attend_gather
from .gather_naive import attend_gather_naive
from .naive import attend_naive
from .sparse_decode import SparseDecode, workspace_bytes

__all__ = [
    "MAX_GROUP",
    "AttendBuffers",
    "DenseBuffers",
    "SparseDecode",
    "attend",
    "attend_dense",
    "attend_dense_naive",
    "attend_dense_triton",
    "attend_gather",
    "attend_gather_naive",
    "attend_naive",
    "fits_dense",
    "workspace_bytes",
]


def attend(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor,
    seq_lens: torch.Tensor,
    budgets: torch.Tensor,
    *,
    scale: float,
    logit_cap: float = 0.0,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    out: torch.Tensor | None = None,
    buffers: AttendBuffers | None = None,
    tally: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend with the implementation for ``k_cache``'s device; see `attend_gather_naive`.

    On CUDA the launches depend on shapes only: safe to capture.
    """
    run = attend_gather if k_cache.is_cuda else attend_gather_naive
    return run(
        q,
        k_cache,
        v_cache,
        slots,
        seq_lens,
        budgets,
        scale=scale,
        logit_cap=logit_cap,
        k_scale=k_scale,
        v_scale=v_scale,
        out=out,
        buffers=buffers,
        tally=tally,
    )


def attend_dense(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    token_slots: torch.Tensor,
    seq_lens: torch.Tensor,
    groups: RowGroups | None,
    *,
    scale: float,
    logit_cap: float = 0.0,
    out: torch.Tensor | None = None,
    buffers: DenseBuffers | None = None,
) -> torch.Tensor:
    """Attend with the implementation for ``k_cache``'s device; see `attend_dense_naive`.

    On CUDA the launches depend on shapes only: safe to capture.
    """
    run = attend_dense_triton if k_cache.is_cuda else attend_dense_naive
    return run(
        q,
        k_cache,
        v_cache,
        token_slots,
        seq_lens,
        groups,
        scale=scale,
        logit_cap=logit_cap,
        out=out,
        buffers=buffers,
    )
