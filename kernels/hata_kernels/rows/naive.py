"""Rows of a step by PyTorch: the slots, lengths and budgets of the requests at hand."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..checks import expect, expect_lengths, expect_table, expect_tensor

#: Shares of a context are whole numbers of these parts: host and device agree on every length.
SHARE_UNIT = 10**9


def check_rows(
    req_to_token: torch.Tensor,
    rows: torch.Tensor,
    seq_lens: torch.Tensor,
    longest: int,
    shares: Sequence[tuple[int, int, int]],
    token_slots: torch.Tensor,
    lengths: torch.Tensor,
    budgets: torch.Tensor,
) -> None:
    """Check the arguments of `copy_rows_naive` and of its Triton counterpart.

    Raises
    ------
    ValueError
        When a shape, dtype, device, ``longest`` or a share does not fit.
    """
    device, int32 = req_to_token.device, (torch.int32,)
    integers = (torch.int32, torch.int64)
    expect_table("req_to_token", req_to_token, None)
    expect_tensor("rows", rows, shape=(None,), dtypes=integers, device=device, contiguous=True)
    bs = rows.shape[0]
    where = {"device": device, "contiguous": True}
    expect_tensor("seq_lens", seq_lens, shape=(bs,), dtypes=integers, **where)
    expect_tensor("token_slots", token_slots, shape=(None, None), dtypes=int32, **where)
    expect_tensor("lengths", lengths, shape=token_slots.shape[:1], dtypes=int32, **where)
    most = token_slots.shape[0]
    expect_tensor("budgets", budgets, shape=(len(shares), most), dtypes=int32, **where)
    expect(bs <= most, "rows.shape[0]", f"at most token_slots.shape[0] = {most}", bs)
    expect_table("token_slots", token_slots, None)
    for name, tensor in (("req_to_token", req_to_token), ("token_slots", token_slots)):
        width = tensor.shape[1]
        expect(1 <= longest <= width, "longest", f"1 to {name}.shape[1] = {width}", longest)
    for share in shares:
        parts, low, high = share
        valid = 1 <= parts <= SHARE_UNIT and 1 <= low <= high
        expect(valid, "shares", "(1 to 10**9, at least 1, no less than that)", share)


def copy_rows_naive(
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
        When a shape, dtype, device, ``longest``, a length or a share does not fit.
    """
    out = (token_slots, lengths, budgets)
    check_rows(req_to_token, rows, seq_lens, longest, shares, *out)
    bs, tokens = rows.shape[0], seq_lens.to(torch.int64)
    counts = expect_lengths("seq_lens", tokens, longest, f"1 to longest = {longest}")
    for row, (request, length) in enumerate(zip(rows.tolist(), counts, strict=True)):
        token_slots[row, :length] = req_to_token[request, :length]
    lengths[:bs] = seq_lens
    for (parts, low, high), budget in zip(shares, budgets, strict=True):
        share = (tokens * parts + SHARE_UNIT - 1) // SHARE_UNIT
        budget[:bs] = torch.minimum(tokens, share.clamp(low, high))
