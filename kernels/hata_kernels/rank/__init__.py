"""Rank the tokens of every request and KV head by their codes, and select the best."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..bits import WORD_BITS
from ..checks import expect, expect_rows, expect_tensor
from ..rows.groups import RowGroups
from ..score.distance import DISTANCES
from ..score.levels import SCALE_DTYPES, full_score
from ..score.naive import score_naive
from ..select import select
from .buffers import RankBuffers, RankSizes, shared_values

__all__ = ["RankBuffers", "RankSizes", "rank", "shared_values"]


def rank(
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
    bias: torch.Tensor | None = None,
    buffers: RankBuffers | None = None,
    groups: RowGroups | None = None,
) -> torch.Tensor:
    """Select the slots of every request's best tokens by their codes.

    The best scores (`hata_kernels.score.score_naive`), ties to the earlier token, sink and recent
    tokens first. A CPU and a GPU give the same, bit for bit.

    Kernels of a GPU of compute capability 9.0 and up read lengths, budgets, slots, groups and the
    codes of tokens before the last ``recent`` while the launch before still runs: it must not write
    them, nor the one before `Encoder.encode_step`, which alone may write codes directly before.

    Parameters
    ----------
    q_codes, codes, token_slots, seq_lens, plane_weights, sink, recent, scales, scale_bits, bias
        As in `hata_kernels.score.score_naive`.
    budgets : torch.Tensor
        int32 ``[bs]``, at least 1: tokens that a request keeps per KV head, k_max at most.
    k_max : int
        Entries of a row of the result.
    out : torch.Tensor, optional
        int32 ``[bs, kv_heads, k_max]``, contiguous.
    buffers : RankBuffers, optional
        Scratch of a GPU's launches, allocated when None.
    groups : RowGroups, optional
        Of these very rows, slots and lengths: a GPU scores the tiles that they share once for all,
        unless `shared_values` or a list that is shorter than a tile say otherwise.

    Returns
    -------
    torch.Tensor
        ``out``: the kept slots in position order, then -1.

    Raises
    ------
    ValueError
        When a shape, dtype, device, count or ``plane_weights`` does not fit; on a CPU when a length
        or budget does not, which a GPU trusts; on a GPU when buffers or groups do not.
    """
    _check_codes(q_codes, codes, plane_weights, scales, scale_bits, bias)
    (batch, _, _), kv_heads, device = q_codes.shape, codes.shape[1], codes.device
    expect_rows(token_slots, seq_lens, batch, sink, recent, device)
    expect(k_max >= 1, "k_max", "at least 1", k_max)
    kind, where = type(budgets).__name__, {"device": device, "contiguous": True}
    expect(isinstance(budgets, torch.Tensor), "budgets", "a tensor", kind)
    expect_tensor("budgets", budgets, shape=(batch,), dtypes=(torch.int32,), **where)
    shape = (batch, kv_heads, k_max)
    if out is None:
        out = torch.empty(shape, dtype=torch.int32, device=device)
    else:
        expect_tensor("out", out, shape=shape, dtypes=(torch.int32,), **where)
    run = rank_naive
    if codes.is_cuda:
        from .triton import rank_triton as run  # Triton is imported with it
    of_codes = (q_codes, codes, plane_weights, scales, scale_bits, bias)
    run(*of_codes, token_slots, seq_lens, budgets, sink, recent, out, buffers, groups)
    return out


def rank_naive(
    q_codes, codes, plane_weights, scales, scale_bits, bias,
    token_slots, seq_lens, budgets, sink, recent, out, buffers, groups,
) -> None:  # fmt: skip
    """`rank` by PyTorch, of checked arguments; buffers and groups make no difference."""
    ends = {"sink": sink, "recent": recent}
    of_codes = {"plane_weights": plane_weights, "scales": scales, "scale_bits": scale_bits}
    of_codes["bias"] = bias
    scores = score_naive(q_codes, codes, token_slots, seq_lens, **ends, **of_codes)
    out.copy_(select(scores, token_slots, seq_lens, budgets, k_max=out.shape[2]))


def _check_codes(
    q_codes: torch.Tensor,
    codes: torch.Tensor,
    plane_weights: Sequence[int],
    scales: torch.Tensor | None,
    scale_bits: int,
    bias: torch.Tensor | None,
) -> None:
    """Check the codes of queries and keys and what a score is made of."""
    where = {"device": codes.device, "contiguous": True}
    int32 = {"dtypes": (torch.int32,), **where}
    expect_tensor("codes", codes, shape=(None, None, None), **int32)
    slots, kv_heads, words = codes.shape
    valid = len(plane_weights) > 0 and all(type(w) is int and w > 0 for w in plane_weights)
    expect(valid, "plane_weights", "positive integers", plane_weights)
    shape = (None, kv_heads * len(plane_weights), words)
    expect_tensor("q_codes", q_codes, shape=shape, **int32)
    full = full_score(plane_weights, words * WORD_BITS)
    expect(full < 2**20, "bits times the sum of plane_weights", "less than 2**20", full)
    expect(scale_bits in (0, *SCALE_DTYPES), "scale_bits", "0, 8 or 16", scale_bits)
    if scale_bits:
        expect(scales is not None, "scales", "a tensor", None)
        dtypes = (SCALE_DTYPES[scale_bits],)
        expect_tensor("scales", scales, shape=(slots, kv_heads), dtypes=dtypes, **where)
    else:
        expect(scales is None, "scales", "None, because scale_bits is 0", "a tensor")
    if bias is not None:
        expect_tensor("bias", bias, shape=(len(q_codes), kv_heads, DISTANCES), **int32)
