"""Selection by plain PyTorch, on any device: top-k of real-valued scores, and streaming.

No shape depends on lengths or budgets and nothing waits for the device: safe to capture.
"""

from __future__ import annotations

import torch

from ..checks import expect, expect_tensor
from ..score.arguments import LENGTHS
from .naive import check_budgets, check_select


def select_topk(
    scores: torch.Tensor,
    token_slots: torch.Tensor,
    seq_lens: torch.Tensor,
    budgets: int | torch.Tensor,
    *,
    k_max: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Select by `torch.topk`; same contract and result as `select_naive`, for any scores.

    Takes 8 bytes of scratch per score. Lengths and tensor budgets are trusted.

    Parameters
    ----------
    scores, token_slots, seq_lens, budgets, k_max, out
        As in `select_naive`, on any device.

    Returns
    -------
    torch.Tensor
        int32 ``[bs, kv_heads, k_max]``: the kept slots in position order, then -1.

    Raises
    ------
    ValueError
        When a shape, dtype, device or integer budget does not fit.
    """
    check_select(scores, token_slots, seq_lens, budgets, k_max, out)
    batch, kv_heads, width = scores.shape
    lengths = seq_lens.view(batch, 1, 1)
    position = torch.arange(width, device=scores.device)
    # As in select_naive: score in the high half, of equal scores the earlier position is larger.
    order = (scores.float().view(torch.int32).long() << 32) - position
    order.masked_fill_(position >= lengths, torch.iinfo(torch.int64).min)
    best = order.topk(min(k_max, width), dim=-1, sorted=True).indices
    column = torch.arange(best.shape[2], device=scores.device)
    kept = torch.minimum(lengths, _column(budgets, seq_lens))
    # Those beyond a row's budget sort to its end.
    best = best.masked_fill(column >= kept, width).sort(dim=-1).values
    rows = token_slots[:, :width].unsqueeze(1).expand(-1, kv_heads, -1)
    slots = rows.gather(2, best.clamp(max=width - 1)).masked_fill(best == width, -1)
    if out is None:
        out = torch.empty((batch, kv_heads, k_max), dtype=torch.int32, device=scores.device)
    out[..., : best.shape[2]].copy_(slots)
    out[..., best.shape[2] :].fill_(-1)
    return out


def select_streaming(
    token_slots: torch.Tensor,
    seq_lens: torch.Tensor,
    budgets: int | torch.Tensor,
    *,
    kv_heads: int,
    k_max: int,
    sink: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Select the first and the most recent tokens, whatever their keys (StreamingLLM).

    Xiao et al., arXiv 2309.17453. Row (b, h) holds the slots of the first ``min(sink, budget_b)``
    tokens and of the last ``budget_b - sink`` in position order, or of the whole context where
    the budget covers it, then -1. Lengths and tensor budgets are trusted.

    Parameters
    ----------
    token_slots : torch.Tensor
        int32 ``[bs, width]``; row b lists the slots of request b in position order.
    seq_lens : torch.Tensor
        int32 or int64 ``[bs]``, at least 1, at most width.
    budgets : int or torch.Tensor
        Tokens to keep: one number for all requests, equal to ``k_max``, or int32 ``[bs]`` with
        values of 1 to ``k_max``.
    kv_heads : int
        KV heads; each gets the same selection.
    k_max : int
        Width of the result.
    sink : int
        How many first tokens are kept.
    out : torch.Tensor, optional
        int32 ``[bs, kv_heads, k_max]``, contiguous. Allocated when None.

    Returns
    -------
    torch.Tensor
        ``out``.

    Raises
    ------
    ValueError
        When a shape, dtype, device, ``sink`` or integer budget does not fit.
    """
    device = token_slots.device
    expect_tensor("token_slots", token_slots, shape=(None, None), dtypes=(torch.int32,))
    batch, width = token_slots.shape
    expect(width >= 1, "token_slots.shape[1]", "at least 1", width)
    expect_tensor("seq_lens", seq_lens, shape=(batch,), dtypes=LENGTHS, device=device)
    expect(kv_heads >= 1, "kv_heads", "at least 1", kv_heads)
    expect(sink >= 0, "sink", "at least 0", sink)
    check_budgets(budgets, k_max, batch, device)
    if out is None:
        out = torch.empty((batch, kv_heads, k_max), dtype=torch.int32, device=device)
    shape = (batch, kv_heads, k_max)
    expect_tensor("out", out, shape=shape, dtypes=(torch.int32,), device=device, contiguous=True)
    lengths = seq_lens.view(batch, 1)
    kept = torch.minimum(lengths, _column(budgets, seq_lens).view(-1, 1))
    column = torch.arange(k_max, device=device)
    place = torch.where(column < sink, column, lengths - kept + column)
    slots = token_slots.gather(1, place.clamp(0, width - 1))
    out.copy_(slots.masked_fill(column >= kept, -1).unsqueeze(1))
    return out


def _column(budgets: int | torch.Tensor, seq_lens: torch.Tensor) -> torch.Tensor:
    """Budgets as ``[bs, 1, 1]``, or ``[1, 1, 1]`` where they are one number."""
    if isinstance(budgets, int):
        return torch.full((1, 1, 1), budgets, device=seq_lens.device)
    return budgets.view(-1, 1, 1)
