"""Sparse decoding on a CPU: one compiled call for a layer with codes, else PyTorch references."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from operator import is_
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from hata_kernels.attend import attend_naive
from hata_kernels.encoders import Encoder
from hata_kernels.score import exact_score
from hata_kernels.select import select, select_streaming
from hata_kernels.tally import count_attended
from hata_sglang.config import Budget, LayerPlan
from hata_sglang.decoding.step import Batch, LayerCache, counts
from hata_sglang.decoding.value_sums import ValueSums

if TYPE_CHECKING:
    from hata_kernels.cpu import Rows, SparseLayer

logger = logging.getLogger(__name__)


class CpuDecoder:
    """Decodes the sparse layers eagerly; every shape follows the batch at hand.

    To make one compiles `hata_kernels.cpu`, where its code is not found on disk.

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
    value_sums : ValueSums, optional
        Of the layers that mix in the mean of the values left out.
    """

    def __init__(
        self,
        plans: Sequence[LayerPlan],
        scales: dict[int, float],
        encoders: Mapping[int, Encoder],
        tallies: Mapping[int, torch.Tensor] = MappingProxyType({}),
        value_sums: ValueSums | None = None,
    ):
        self.plans, self.scales, self.encoders = plans, scales, encoders
        self.tallies, self.value_sums = tallies, value_sums
        self.dense: frozenset[int] = frozenset()  # dense layers are the inner backend's
        if encoders:
            self._load_kernels()
        self._layers: dict[int, SparseLayer] = {}

    def _load_kernels(self) -> None:
        """Import, which may compile for some seconds, here and not in the first request."""
        start = time.perf_counter()
        logger.info("hata: loading the CPU kernels; the first start on a machine compiles them")
        from hata_kernels import cpu

        self._kernels = cpu
        seconds = time.perf_counter() - start
        logger.info("hata: CPU kernels ready after %.1f s: %s", seconds, cpu.where_from())

    def prepare(self, batch: Batch, *, graph: bool = False) -> None:
        """Collect what all layers of the coming step share."""
        assert not graph, "SGLang captures no CUDA graphs on a CPU"
        self.requests, self.seq_lens = batch.rows, batch.seq_lens
        self.width = int(batch.seq_lens_cpu.max())
        self.token_slots = batch.req_to_token[batch.rows, : self.width].contiguous()
        self._rows: dict[Budget, Rows] = {}

    def forget(self) -> None:
        """Make layers anew of their encoders, whose weights have changed in place."""
        self._layers.clear()

    def decode(
        self,
        plan: LayerPlan,
        q: torch.Tensor,
        cache: LayerCache,
        new_keys: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Attend each row of ``q [bs, Hq, D]`` over its selected slots: ``[bs, Hq, D]``.

        Parameters
        ----------
        plan : LayerPlan
        q : torch.Tensor
            After RoPE.
        cache : LayerCache
        new_keys : tuple of torch.Tensor, optional
            The step's keys ``[bs, Hkv, D]``, which are in the cache too, and their slots ``[bs]``:
            codes are missing, and are written where the layer keeps codes. None: they are there.
        """
        if plan.layer not in self.encoders:
            return self._decode_without_codes(plan, q, cache)
        layer = self._layer(plan, cache)
        if (rows := self._rows.get(plan.budget)) is None:
            kept, heads = counts(plan.budget, self.seq_lens), layer.encoder.num_kv_heads
            rows = self._kernels.Rows(self.token_slots, self.seq_lens, kept, heads)
            self._rows[plan.budget] = rows
        new_slots = None if new_keys is None else new_keys[1]
        left_out = None
        if self.value_sums is not None:
            left_out = self.value_sums.step(plan.layer, self.requests)
        return layer(q, rows, new_slots, self.tallies.get(plan.layer), left_out)

    def _layer(self, plan: LayerPlan, cache: LayerCache) -> SparseLayer:
        """A layer with its buffers; made once, as the pool's stay the same."""
        layer = self._layers.get(plan.layer)
        if layer is None or not all(map(is_, layer.buffers, cache)):
            ends = {"sink": plan.sink, "recent": plan.recent}
            layer = self._layers[plan.layer] = self._kernels.SparseLayer(
                self.encoders[plan.layer], *cache, **ends, scale=self.scales[plan.layer]
            )
        return layer

    def _decode_without_codes(self, plan, q, cache) -> torch.Tensor:
        """As `decode`, for a layer that ranks by exact scores, or not at all."""
        where, kv_heads = (self.token_slots, self.seq_lens), cache.keys.shape[1]
        scale, budgets = self.scales[plan.layer], counts(plan.budget, self.seq_lens)
        k_max = int(budgets.max())
        if plan.ranks == "positions":
            slots = select_streaming(
                *where, budgets, kv_heads=kv_heads, k_max=k_max, sink=plan.sink
            )
        else:
            scores = torch.empty(q.shape[0], kv_heads, self.width)
            ends = {"sink": plan.sink, "recent": plan.recent}
            exact_score(q, cache.keys, *where, scale=scale, out=scores, **ends)
            slots = select(scores, *where, budgets, k_max=k_max)
        count_attended(self.tallies.get(plan.layer), slots, self.seq_lens, budgets)
        return attend_naive(q, cache.keys, cache.values, slots, budgets, scale=scale)
