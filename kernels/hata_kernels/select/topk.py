"""Selection of the best scored tokens, by PyTorch's top-k or by FlashInfer's on a GPU; and of the
first and the last, whatever their keys.
"""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from ..checks import INTEGERS, expect, expect_lengths, expect_table, expect_tensor


def select(
    scores: torch.Tensor,
    token_slots: torch.Tensor,
    seq_lens: torch.Tensor,
    budgets: int | torch.Tensor,
    *,
    k_max: int,
) -> torch.Tensor:
    """Select the slots of the best-scored tokens of every request and KV head.

    Row (b, h) of the result holds the slots of the ``min(seq_lens[b], budget_b)`` best tokens in
    position order, then -1. Of equal scores at the threshold the earlier positions win.

    On CUDA one budget for all is FlashInfer's top-k, which breaks ties at the threshold in any way
    and returns long rows in any order. No shape depends on lengths or budgets, and nothing waits
    for the device: safe to capture.

    Parameters
    ----------
    scores : torch.Tensor
        float16 or float32 ``[bs, kv_heads, width]``, contiguous; no negative value and no NaN
        within the lengths (+inf is allowed). Beyond ``seq_lens[b]`` anything goes.
    token_slots : torch.Tensor
        int32 ``[bs, at least width]``; row b lists the slots of request b in position order.
    seq_lens : torch.Tensor
        int32 or int64 ``[bs]``, at least 1, at most width; trusted on CUDA.
    budgets : int or torch.Tensor
        Tokens to keep: one number for all requests, equal to ``k_max``, or int32 ``[bs]`` with
        values of 1 to ``k_max``, trusted on CUDA.
    k_max : int
        Width of the result.

    Returns
    -------
    torch.Tensor
        int32 ``[bs, kv_heads, k_max]``.

    Raises
    ------
    ValueError
        When a shape, dtype, device, length or budget does not fit.
    """
    dtypes = (torch.float16, torch.float32)
    expect_tensor("scores", scores, shape=(None, None, None), dtypes=dtypes, contiguous=True)
    (batch, kv_heads, width), device = scores.shape, scores.device
    expect_table("token_slots", token_slots, batch, device)
    wanted = f"at least scores.shape[2] = {width}"
    expect(token_slots.shape[1] >= width, "token_slots.shape[1]", wanted, token_slots.shape[1])
    where = {"device": device, "contiguous": True}
    expect_tensor("seq_lens", seq_lens, shape=(batch,), dtypes=INTEGERS, **where)
    expect(k_max >= 1, "k_max", "at least 1", k_max)
    if isinstance(budgets, int):
        expect(budgets == k_max, "budgets", f"k_max = {k_max}", budgets)
    else:
        expect_tensor("budgets", budgets, shape=(batch,), dtypes=(torch.int32,), **where)
    if scores.is_cuda and isinstance(budgets, int):
        from .flashinfer_topk import select_flashinfer

        return select_flashinfer(scores, token_slots, seq_lens, k_max)
    if not scores.is_cuda:
        expect_lengths("seq_lens", seq_lens, width)
        if isinstance(budgets, torch.Tensor):
            expect_lengths("budgets", budgets, k_max)

    lengths, position = seq_lens.view(-1, 1, 1), torch.arange(width, device=device)
    # Floats that are not negative order as their bit patterns do: score in the high half, the later
    # position the smaller key in the low half. No two keys are equal.
    order = (scores.float().view(torch.int32).long() << 32) - position
    order.masked_fill_(position >= lengths, torch.iinfo(torch.int64).min)
    best = order.topk(min(k_max, width), dim=-1, sorted=True).indices
    kept = lengths.clamp(max=k_max)
    if isinstance(budgets, torch.Tensor):
        kept = torch.minimum(kept, budgets.view(-1, 1, 1))
    # Those beyond a row's budget sort to its end.
    column = torch.arange(best.shape[2], device=device)
    best = best.masked_fill(column >= kept, width).sort(dim=-1).values
    rows = token_slots[:, :width].unsqueeze(1).expand(-1, kv_heads, -1)
    slots = rows.gather(2, best.clamp(max=width - 1)).masked_fill(best == width, -1)
    return pad(slots, (0, k_max - slots.shape[2]), value=-1)


def select_streaming(
    token_slots: torch.Tensor,
    seq_lens: torch.Tensor,
    budgets: torch.Tensor,
    *,
    kv_heads: int,
    k_max: int,
    sink: int,
) -> torch.Tensor:
    """Select the first and the most recent tokens (StreamingLLM).

    Xiao et al., arXiv 2309.17453. Row (b, h) holds the slots of the first ``min(sink, budget_b)``
    tokens and of the last ``budget_b - sink`` in position order, or of the whole context where
    the budget covers it, then -1. Lengths and budgets are trusted. No shape depends on them and
    nothing waits for the device: safe to capture.

    Parameters
    ----------
    token_slots : torch.Tensor
        int32 ``[bs, width]``; row b lists the slots of request b in position order.
    seq_lens : torch.Tensor
        int32 or int64 ``[bs]``, at least 1, at most width.
    budgets : torch.Tensor
        int32 ``[bs]``: tokens to keep, 1 to ``k_max``.
    kv_heads : int
        KV heads; each gets the same selection.
    k_max : int
        Width of the result.
    sink : int
        How many first tokens are kept.

    Returns
    -------
    torch.Tensor
        int32 ``[bs, kv_heads, k_max]``.

    Raises
    ------
    ValueError
        When a shape, dtype, device or number does not fit.
    """
    device = token_slots.device
    expect_tensor("token_slots", token_slots, shape=(None, None), dtypes=(torch.int32,))
    batch, width = token_slots.shape
    expect(width >= 1, "token_slots.shape[1]", "at least 1", width)
    expect_tensor("seq_lens", seq_lens, shape=(batch,), dtypes=INTEGERS, device=device)
    expect_tensor("budgets", budgets, shape=(batch,), dtypes=(torch.int32,), device=device)
    for name, value, least in (("kv_heads", kv_heads, 1), ("k_max", k_max, 1), ("sink", sink, 0)):
        expect(value >= least, name, f"at least {least}", value)
    lengths = seq_lens.view(batch, 1)
    kept = torch.minimum(lengths, budgets.view(batch, 1))
    column = torch.arange(k_max, device=device)
    place = torch.where(column < sink, column, lengths - kept + column)
    slots = token_slots.gather(1, place.clamp(0, width - 1)).masked_fill(column >= kept, -1)
    return slots.unsqueeze(1).repeat(1, kv_heads, 1)
