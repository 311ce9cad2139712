"""Sparse decoding on a CPU, with the kernels' PyTorch references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch

from hata_kernels.attend import attend_naive
from hata_kernels.encoders import Encoder
from hata_kernels.select import select_naive, select_streaming
from hata_kernels.tally import count_attended
from hata_sglang.config import LayerPlan
from hata_sglang.decoding.scores import dtype_of_scores, write_scores
from hata_sglang.decoding.step import Batch, counts


class CpuDecoder:
    """Decodes the sparse layers eagerly; every shape follows the batch at hand.

    Parameters
    ----------
    plans : sequence of LayerPlan
        The sparse layers.
    scales : dict of int to float
        Softmax scale per sparse layer.
    encoders : mapping of int to hata_kernels.encoders.Encoder
        By sparse layer, of those whose method keeps codes.
    tallies : mapping of int to torch.Tensor, optional
        By layer, what its steps are counted in (`hata_kernels.tally`).
    """

    #: The pool encodes a step's keys when it stores them.
    encodes_keys = False

    def __init__(
        self,
        plans: Sequence[LayerPlan],
        scales: dict[int, float],
        encoders: Mapping[int, Encoder],
        tallies: Mapping[int, torch.Tensor] = MappingProxyType({}),
    ):
        self.plans, self.scales, self.encoders = plans, scales, encoders
        self.tallies = tallies

    def prepare(self, batch: Batch, *, graph: bool = False) -> None:
        """Collect what all layers of the coming step share."""
        assert not graph, "SGLang captures no CUDA graphs on a CPU"
        self.batch = batch
        self.seq_lens = batch.seq_lens
        self.width = int(batch.seq_lens_cpu.max())
        self.token_slots = batch.req_to_token[batch.rows, : self.width].contiguous()

    def covers_context(self, plan: LayerPlan) -> bool:
        """Say whether every row's budget covers its whole context, so that dense is the same."""
        return bool((counts(plan.budget, self.batch.seq_lens_cpu) == self.batch.seq_lens_cpu).all())

    def decodes_dense(self, layer: int) -> bool:
        """False: dense layers are the inner backend's."""
        return False

    def decode(
        self,
        plan: LayerPlan,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        codes: torch.Tensor | None,
        key_scales: torch.Tensor | None,
    ) -> torch.Tensor:
        """Attend each row of ``q [bs, Hq, D]`` over its selected slots: ``[bs, Hq, D]``.

        Parameters
        ----------
        plan : LayerPlan
        q : torch.Tensor
            After RoPE.
        k_cache, v_cache : torch.Tensor
            ``[slots, Hkv, D]``.
        codes : torch.Tensor or None
            int32 ``[slots, Hkv, bits // 32]``; None where the method keeps no codes.
        key_scales : torch.Tensor or None
            uint8 or int16 ``[slots, Hkv]``; None where the layer's encoder has no scales.
        """
        scale = self.scales[plan.layer]
        where = (self.token_slots, self.seq_lens)
        budgets = counts(plan.budget, self.seq_lens)
        kv_heads, k_max = k_cache.shape[1], int(budgets.max())
        encoder = self.encoders.get(plan.layer)
        dtype = dtype_of_scores(plan, encoder)
        if dtype is None:
            slots = select_streaming(
                *where, budgets, kv_heads=kv_heads, k_max=k_max, sink=plan.sink
            )
        else:
            scores = torch.empty(q.shape[0], kv_heads, self.width, dtype=dtype)
            tokens = (q, k_cache, codes, key_scales)
            write_scores(plan, encoder, *tokens, *where, scale=scale, out=scores)
            slots = select_naive(scores, *where, budgets, k_max=k_max)
        count_attended(self.tallies.get(plan.layer), slots, self.seq_lens, budgets)
        return attend_naive(q, k_cache, v_cache, slots, budgets, scale=scale)
