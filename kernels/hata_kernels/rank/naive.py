"""CPU ranking: score every token, then select."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..bits import WORD_BITS
from ..checks import expect, expect_table, expect_tensor
from ..score.arguments import LENGTHS, check_codes
from ..score.levels import score_dtype
from ..score.naive import score_naive
from ..select import select


def check_rank(
    q_codes: torch.Tensor,
    codes: torch.Tensor,
    token_slots: torch.Tensor,
    seq_lens: torch.Tensor,
    budgets: torch.Tensor,
    plane_weights: Sequence[int],
    sink: int,
    recent: int,
    k_max: int,
    out: torch.Tensor | None,
    scales: torch.Tensor | None,
    scale_bits: int,
) -> torch.Tensor:
    """Check the arguments of `rank_naive` and its Triton counterpart; return ``out``, made if None.

    Raises
    ------
    ValueError
        When a shape, dtype, device, count or ``plane_weights`` does not fit.
    """
    check_codes(q_codes, codes, plane_weights, scales, scale_bits)
    expect(sink >= 0, "sink", "at least 0", sink)
    expect(recent >= 0, "recent", "at least 0", recent)
    rows = {"dtypes": (torch.int32,), "device": codes.device}
    expect_table("token_slots", token_slots, None, codes.device)
    batch = token_slots.shape[0]
    expect(q_codes.shape[0] == batch, "q_codes.shape[0]", batch, q_codes.shape[0])
    expect_tensor(
        "seq_lens", seq_lens, shape=(batch,), dtypes=LENGTHS, device=codes.device, contiguous=True
    )
    expect(k_max >= 1, "k_max", "at least 1", k_max)
    expect(isinstance(budgets, torch.Tensor), "budgets", "a tensor", type(budgets).__name__)
    expect_tensor("budgets", budgets, shape=(batch,), contiguous=True, **rows)
    shape = (batch, codes.shape[1], k_max)
    if out is None:
        return torch.empty(shape, dtype=torch.int32, device=codes.device)
    expect_tensor("out", out, shape=shape, contiguous=True, **rows)
    return out


def rank_naive(
    q_codes: torch.Tensor,
    codes: torch.Tensor,
    token_slots: torch.Tensor,
    seq_lens: torch.Tensor,
    budgets: torch.Tensor,
    *,
    plane_weights: Sequence[int],
    sink: int,
    recent: int,
    k_max: int,
    out: torch.Tensor | None = None,
    scales: torch.Tensor | None = None,
    scale_bits: int = 0,
    buffers: object = None,
    groups: object = None,
) -> torch.Tensor:
    """Select the slots of every request's best tokens by their codes.

    `hata_kernels.select.select` of `hata_kernels.score.score_naive`: the best scores, ties to
    the earlier token, sink and recent tokens first.

    Parameters
    ----------
    q_codes, codes, token_slots, seq_lens, plane_weights, sink, recent, scales, scale_bits
        As in `score_naive`.
    budgets : torch.Tensor
        int32 ``[bs]``, at least 1: tokens that a request keeps per KV head, k_max at most.
    k_max : int
        Entries of a row of the result.
    out : torch.Tensor, optional
        int32 ``[bs, kv_heads, k_max]``, contiguous.
    buffers, groups : object
        Scratch of the Triton kernels, and rows that share slots; not used here.

    Returns
    -------
    torch.Tensor
        ``out``: the kept slots in position order, then -1.

    Raises
    ------
    ValueError
        When a shape, dtype, device, length or count does not fit.
    """
    options = (plane_weights, sink, recent, k_max)
    lengths = (token_slots, seq_lens)
    out = check_rank(q_codes, codes, *lengths, budgets, *options, out, scales, scale_bits)
    dtype = score_dtype(plane_weights, codes.shape[2] * WORD_BITS, scale_bits)
    scores = torch.empty(*out.shape[:2], token_slots.shape[1], dtype=dtype)
    score_naive(
        q_codes,
        codes,
        *lengths,
        plane_weights=plane_weights,
        sink=sink,
        recent=recent,
        out=scores,
        scales=scales,
        scale_bits=scale_bits,
    )
    return select(scores, *lengths, budgets, k_max=k_max, out=out)
