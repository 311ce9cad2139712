"""Rank the tokens of every request and KV head by their codes, and select the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..checks import expect, expect_table, expect_tensor
from ..rows.groups import RowGroups
from ..score.arguments import LENGTHS, check_codes
from .buffers import RankBuffers, RankSizes, shared_values
from .naive import rank_naive

__all__ = ["RankArguments", "RankBuffers", "RankSizes", "rank", "shared_values"]


@dataclass(frozen=True)
class RankArguments:
    """Arguments of `rank`, checked: what its implementations take.

    Raises
    ------
    ValueError
        When a shape, dtype, device, count or ``plane_weights`` does not fit.
    """

    q_codes: torch.Tensor
    codes: torch.Tensor
    token_slots: torch.Tensor
    seq_lens: torch.Tensor
    budgets: torch.Tensor
    plane_weights: Sequence[int]
    sink: int
    recent: int
    k_max: int
    out: torch.Tensor | None = None
    scales: torch.Tensor | None = None
    scale_bits: int = 0
    buffers: RankBuffers | None = None
    groups: RowGroups | None = None

    def __post_init__(self) -> None:
        codes, device = self.codes, self.codes.device
        check_codes(self.q_codes, codes, self.plane_weights, self.scales, self.scale_bits)
        expect(self.sink >= 0, "sink", "at least 0", self.sink)
        expect(self.recent >= 0, "recent", "at least 0", self.recent)
        where = {"device": device, "contiguous": True}
        expect_table("token_slots", self.token_slots, None, device)
        batch, found = self.token_slots.shape[0], self.q_codes.shape[0]
        expect(found == batch, "q_codes.shape[0]", batch, found)
        expect_tensor("seq_lens", self.seq_lens, shape=(batch,), dtypes=LENGTHS, **where)
        expect(self.k_max >= 1, "k_max", "at least 1", self.k_max)
        kind = type(self.budgets).__name__
        expect(isinstance(self.budgets, torch.Tensor), "budgets", "a tensor", kind)
        expect_tensor("budgets", self.budgets, shape=(batch,), dtypes=(torch.int32,), **where)
        if self.out is not None:
            shape = (batch, codes.shape[1], self.k_max)
            expect_tensor("out", self.out, shape=shape, dtypes=(torch.int32,), **where)

    def result(self) -> torch.Tensor:
        """``out``, or a new tensor where there is none."""
        if self.out is not None:
            return self.out
        shape = (len(self.budgets), self.codes.shape[1], self.k_max)
        return torch.empty(shape, dtype=torch.int32, device=self.codes.device)


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
    q_codes, codes, token_slots, seq_lens, plane_weights, sink, recent, scales, scale_bits
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
    options = (plane_weights, sink, recent, k_max, out, scales, scale_bits, buffers, groups)
    arguments = RankArguments(q_codes, codes, token_slots, seq_lens, budgets, *options)
    if not codes.is_cuda:
        return rank_naive(arguments)
    from .triton import rank_triton  # Triton is imported with it

    return rank_triton(arguments)
