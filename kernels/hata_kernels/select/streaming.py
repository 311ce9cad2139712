"""Selection of the first and the last tokens, whatever their keys."""

from __future__ import annotations

import torch

from ..checks import INTEGERS, expect, expect_tensor


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
