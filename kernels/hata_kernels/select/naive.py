"""CPU selection: one exact top-k per request over keys that carry the position as tie-break."""

from __future__ import annotations

import torch

from ..checks import expect, expect_lengths, expect_table, expect_tensor
from ..score.arguments import LENGTHS


def check_select(
    scores: torch.Tensor,
    token_slots: torch.Tensor,
    seq_lens: torch.Tensor,
    budgets: int | torch.Tensor,
    k_max: int,
    out: torch.Tensor | None,
) -> None:
    """Check the arguments that every selection shares.

    Raises
    ------
    ValueError
        When a shape, dtype, device, ``k_max`` or an integer budget does not fit.
    """
    expect_tensor(
        "scores",
        scores,
        shape=(None, None, None),
        dtypes=(torch.float16, torch.float32),
        contiguous=True,
    )
    batch, kv_heads, width = scores.shape
    device = scores.device
    expect_table("token_slots", token_slots, batch, device)
    expect(
        token_slots.shape[1] >= width,
        "token_slots.shape[1]",
        f"at least scores.shape[2] = {width}",
        token_slots.shape[1],
    )
    where = {"device": device, "contiguous": True}
    expect_tensor("seq_lens", seq_lens, shape=(batch,), dtypes=LENGTHS, **where)
    check_budgets(budgets, k_max, batch, device)
    if out is not None:
        expect_tensor(
            "out",
            out,
            shape=(batch, kv_heads, k_max),
            dtypes=(torch.int32,),
            device=device,
            contiguous=True,
        )


def check_budgets(
    budgets: int | torch.Tensor, k_max: int, batch: int, device: torch.device
) -> None:
    """Check one budget for all requests, or a tensor of budgets whose values are trusted.

    Raises
    ------
    ValueError
        When ``k_max``, an integer budget or the tensor's shape, dtype or device does not fit.
    """
    expect(k_max >= 1, "k_max", "at least 1", k_max)
    if isinstance(budgets, int):
        expect(budgets == k_max, "budgets", f"k_max = {k_max}", budgets)
    else:
        where = {"device": device, "contiguous": True}
        expect_tensor("budgets", budgets, shape=(batch,), dtypes=(torch.int32,), **where)


def select_naive(
    scores: torch.Tensor,
    token_slots: torch.Tensor,
    seq_lens: torch.Tensor,
    budgets: int | torch.Tensor,
    *,
    k_max: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Select the slots of the best-scored tokens of every request and KV head.

    Row (b, h) of the result holds the slots of the ``min(seq_lens[b], budget_b)`` best tokens in
    position order, then -1. Of equal scores at the threshold the earlier positions win.

    Parameters
    ----------
    scores : torch.Tensor
        float16 or float32 ``[bs, kv_heads, width]``, contiguous, on the CPU; no negative value
        and no NaN within the lengths (+inf is allowed). Beyond ``seq_lens[b]`` anything goes.
    token_slots : torch.Tensor
        int32 ``[bs, at least width]``; row b lists the slots of request b in position order.
    seq_lens : torch.Tensor
        int32 or int64 ``[bs]``, at least 1, at most width.
    budgets : int or torch.Tensor
        Tokens to keep: one number for all requests, equal to ``k_max``, or int32 ``[bs]`` with
        values of 1 to ``k_max``.
    k_max : int
        Width of the result.
    out : torch.Tensor, optional
        int32 ``[bs, kv_heads, k_max]``, contiguous. Allocated when None.

    Returns
    -------
    torch.Tensor
        ``out``.

    Raises
    ------
    ValueError
        When a shape, dtype, device, length or budget does not fit.
    """
    check_select(scores, token_slots, seq_lens, budgets, k_max, out)
    if out is None:
        out = torch.empty((*scores.shape[:2], k_max), dtype=torch.int32)
    lengths = expect_lengths("seq_lens", seq_lens, scores.shape[2])
    keep = [budgets] * len(lengths) if isinstance(budgets, int) else budgets.tolist()
    expect(all(1 <= budget <= k_max for budget in keep), "budgets", f"1 to {k_max}", keep)
    for row, (length, budget) in enumerate(zip(lengths, keep, strict=True)):
        slots = token_slots[row, :length]
        if length <= budget:
            out[row, :, :length] = slots
            out[row, :, length:] = -1
            continue
        # Floats that are not negative order as their bit patterns do: score in the high half,
        # the later position the smaller key in the low half. No two keys are equal.
        order = scores[row, :, :length].float().view(torch.int32).long() << 32
        order -= torch.arange(length)
        best = order.topk(budget, dim=1, sorted=False).indices.sort(dim=1).values
        out[row, :, :budget] = slots.take(best)
        out[row, :, budget:] = -1
    return out
