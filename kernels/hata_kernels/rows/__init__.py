"""Rows of a step: what a captured graph reads of the requests at hand."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .naive import SHARE_UNIT, copy_rows_naive

__all__ = ["SHARE_UNIT", "copy_rows", "copy_rows_naive"]


def copy_rows(
    req_to_token: torch.Tensor,
    rows: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    longest: int,
    shares: Sequence[tuple[int, int, int]],
    token_slots: torch.Tensor,
    lengths: torch.Tensor,
    budgets: torch.Tensor,
) -> None:
    """Copy with the implementation for the table's device; see `copy_rows_naive`."""
    if req_to_token.is_cuda:
        from .triton import copy_rows_triton as implementation
    else:
        implementation = copy_rows_naive
    implementation(
        req_to_token,
        rows,
        seq_lens,
        longest=longest,
        shares=shares,
        token_slots=token_slots,
        lengths=lengths,
        budgets=budgets,
    )
