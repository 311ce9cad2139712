"""Rows of a step: what a captured graph reads of the requests at hand."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .groups import RowGroups, group_rows_naive
from .naive import SHARE_UNIT, copy_rows_naive

__all__ = [
    "SHARE_UNIT",
    "RowGroups",
    "copy_rows",
    "copy_rows_naive",
    "group_rows",
    "group_rows_naive",
]


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


def group_rows(
    token_slots: torch.Tensor, lengths: torch.Tensor, *, longest: int, groups: RowGroups
) -> None:
    """Find groups with the implementation for the slots' device; see `group_rows_naive`."""
    if token_slots.is_cuda:
        from .groups_triton import group_rows_triton as implementation
    else:
        implementation = group_rows_naive
    implementation(token_slots, lengths, longest=longest, groups=groups)
