"""Sparse decoding on a CPU, with the kernels' PyTorch references."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hata_kernels.attend import attend_naive
from hata_kernels.encode import encode_naive
from hata_kernels.score import exact_score_naive, score_dtype, score_naive
from hata_kernels.select import select_naive
from hata_sglang.config import LayerPlan
from hata_sglang.decoding.step import Batch, count_step, counts


class CpuDecoder:
    """Decodes the sparse layers eagerly; every shape follows the batch at hand.

    Parameters
    ----------
    plans : sequence of LayerPlan
        The sparse layers.
    scales : dict of int to float
        Softmax scale per sparse layer.
    """

    def __init__(self, plans: Sequence[LayerPlan], scales: dict[int, float]):
        self.plans, self.scales = plans, scales

    def prepare(self, batch: Batch, *, graph: bool = False) -> None:
        """Collect what all layers of the coming step share."""
        assert not graph, "SGLang captures no CUDA graphs on a CPU"
        self.batch = batch
        self.seq_lens = batch.seq_lens
        self.width = int(batch.seq_lens_cpu.max())
        self.token_slots = batch.req_to_token[batch.rows, : self.width].contiguous()
        count_step(self.plans, batch.seq_lens_cpu)

    def covers_context(self, plan: LayerPlan) -> bool:
        """Say whether every row's budget covers its whole context, so that dense is the same."""
        return bool((counts(plan.budget, self.batch.seq_lens_cpu) == self.batch.seq_lens_cpu).all())

    def decode(
        self,
        plan: LayerPlan,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        codes: torch.Tensor | None,
        weight: torch.Tensor | None,
    ) -> torch.Tensor:
        """Attend each row of ``q [bs, Hq, D]`` over its selected slots: ``[bs, Hq, D]``.

        Parameters
        ----------
        plan : LayerPlan
        q : torch.Tensor
            After RoPE.
        k_cache, v_cache : torch.Tensor
            ``[slots, Hkv, D]``.
        codes, weight : torch.Tensor or None
            int32 ``[slots, Hkv, bits // 32]`` and float32 ``[Hkv, D, bits]``; None where the
            method keeps no codes.
        """
        shape = (q.shape[0], k_cache.shape[1], self.width)
        scale = self.scales[plan.layer]
        forced = {"sink": plan.sink, "recent": plan.recent}
        where = (self.token_slots, self.seq_lens)
        if plan.method == "exact":
            scores = torch.empty(shape, dtype=torch.float32)
            exact_score_naive(q, k_cache, *where, scale=scale, out=scores, **forced)
        else:
            scores = torch.empty(shape, dtype=score_dtype(q.shape[1] // shape[1], plan.bits))
            score_naive(encode_naive(q, weight), codes, *where, out=scores, **forced)
        budgets = counts(plan.budget, self.seq_lens)
        k_max = int(budgets.max())
        slots = torch.empty(*shape[:2], k_max, dtype=torch.int32)
        select_naive(scores, *where, budgets, k_max=k_max, out=slots)
        return attend_naive(q, k_cache, v_cache, slots, budgets, scale=scale)
