"""Rows of a step: what a captured graph reads of the requests at hand."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..checks import INTEGERS, expect, expect_table, expect_tensor
from .groups import RowGroups
from .naive import SHARE_UNIT, copy_rows_naive, group_rows_naive

__all__ = ["SHARE_UNIT", "RowGroups", "copy_rows", "group_rows"]


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
    """Copy the rows of a step's requests to buffers of their own, and compute their budgets.

    Parameters
    ----------
    req_to_token : torch.Tensor
        int32 ``[requests, context]``: slots of every request in position order.
    rows : torch.Tensor
        int32 or int64 ``[bs]``: each row's request.
    seq_lens : torch.Tensor
        int32 or int64 ``[bs]``, tokens, at least 1.
    longest : int
        No length is above it.
    shares : sequence of (int, int, int)
        Budgets that follow the context: parts of a billion, and bounds in tokens.
    token_slots : torch.Tensor
        int32 ``[at least bs, at least longest]``, contiguous: row b is written up to its length;
        what is beyond is undefined.
    lengths : torch.Tensor
        int32 ``[at least bs]``: gets ``seq_lens``.
    budgets : torch.Tensor
        int32 ``[len(shares), at least bs]``: gets ``min(n, clamp(ceil(n * parts / 10**9), low,
        high))`` of every length n.

    Raises
    ------
    ValueError
        When a shape, dtype, device, ``longest`` or a share does not fit; on a CPU when a length
        does not, which a GPU trusts.
    """
    where = {"device": req_to_token.device, "contiguous": True}
    int32 = {"dtypes": (torch.int32,), **where}
    expect_table("req_to_token", req_to_token, None)
    expect_tensor("rows", rows, shape=(None,), dtypes=INTEGERS, **where)
    bs = rows.shape[0]
    expect_tensor("seq_lens", seq_lens, shape=(bs,), dtypes=INTEGERS, **where)
    expect_tensor("token_slots", token_slots, shape=(None, None), **int32)
    most = token_slots.shape[0]
    expect_tensor("lengths", lengths, shape=(most,), **int32)
    expect_tensor("budgets", budgets, shape=(len(shares), most), **int32)
    expect(bs <= most, "rows.shape[0]", f"at most token_slots.shape[0] = {most}", bs)
    for name, tensor in (("req_to_token", req_to_token), ("token_slots", token_slots)):
        width = tensor.shape[1]
        expect(1 <= longest <= width, "longest", f"1 to {name}.shape[1] = {width}", longest)
    for share in shares:
        parts, low, high = share
        valid = 1 <= parts <= SHARE_UNIT and 1 <= low <= high
        expect(valid, "shares", "(1 to 10**9, at least 1, no less than that)", share)
    if req_to_token.is_cuda:
        from .triton import copy_rows_triton as implementation
    else:
        implementation = copy_rows_naive
    out = (token_slots, lengths, budgets)
    implementation(req_to_token, rows, seq_lens, longest, shares, *out)


def group_rows(
    token_slots: torch.Tensor, lengths: torch.Tensor, *, longest: int, groups: RowGroups
) -> None:
    """Find the rows of a step that share the slots of a prefix.

    A row's leader is the first row that has its slot of the middle of its context there, as rows
    have that ask about one document. Their slots are then compared one by one.

    Parameters
    ----------
    token_slots : torch.Tensor
        int32 ``[bs, at least longest]``: slots in position order; undefined beyond the lengths.
    lengths : torch.Tensor
        int32 ``[bs]``, tokens, at least 1.
    longest : int
        No length is above it.
    groups : RowGroups
        Gets the groups, of the first bs rows.

    Raises
    ------
    ValueError
        When a shape, dtype, device or ``longest`` does not fit; on a CPU when a length does not,
        which a GPU trusts.
    """
    expect_table("token_slots", token_slots, None)
    rows, width = token_slots.shape
    where = {"device": token_slots.device, "contiguous": True}
    expect_tensor("lengths", lengths, shape=(rows,), dtypes=(torch.int32,), **where)
    expect(1 <= longest <= width, "longest", f"1 to token_slots.shape[1] = {width}", longest)
    groups.check(rows, longest, token_slots.device)
    if token_slots.is_cuda:
        from .triton import group_rows_triton as implementation
    else:
        implementation = group_rows_naive
    implementation(token_slots, lengths, longest, groups)
