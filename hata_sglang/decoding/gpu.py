"""Sparse decoding on a GPU with Triton's kernels, eager or inside SGLang's CUDA graphs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch

from hata_kernels.attend import attend, attend_dense
from hata_kernels.encoders import Encoder
from hata_kernels.rank import rank
from hata_kernels.rows import copy_rows, group_rows
from hata_kernels.score import exact_score
from hata_kernels.select import select, select_streaming
from hata_sglang.config import LayerPlan
from hata_sglang.decoding.gpu_buffers import (
    Buffers,
    BufferSizes,
    eager_width,
    encoder_kind,
    k_max,
    may_share,
    rank_key,
)
from hata_sglang.decoding.planned import PlannedAttention
from hata_sglang.decoding.step import Batch, LayerCache
from hata_sglang.decoding.value_sums import ValueSums
from hata_sglang.shape import ModelShape


class GpuDecoder:
    """Decodes the sparse layers without waiting for the host.

    It decodes dense layers as well, where its kernels can, and reads once what rows share. A step
    then needs nothing of the inner backend, whose plan would list every cached token first.

    In a CUDA graph every kernel reads static buffers: a private copy of the rows of
    ``req_to_token`` (SGLang may free and rewrite the originals while a graph replays), lengths and
    budgets. All launches depend on shapes only.

    Parameters
    ----------
    plans : sequence of LayerPlan
        The sparse layers.
    scales : dict of int to float
        Softmax scale per layer.
    encoders : mapping of int to hata_kernels.encoders.Encoder
        On the device, by sparse layer, of those whose method keeps codes.
    shape : ModelShape
        The width of the static buffers is its longest context.
    device : torch.device
    dense : collection of int
        Dense layers that it may decode: plain softmax attention in bfloat16 or float16.
    tallies : mapping of int to torch.Tensor, optional
        By layer, on the device, what its steps are counted in (`hata_kernels.tally`).
    planned : PlannedAttention, optional
        Attends over the selections. Default: `hata_kernels.attend.attend`.
    value_sums : ValueSums, optional
        Of the layers that mix in the mean of the values left out; not with `planned`.
    """

    def __init__(
        self,
        plans: Sequence[LayerPlan],
        scales: dict[int, float],
        encoders: Mapping[int, Encoder],
        shape: ModelShape,
        *,
        device: torch.device,
        dense: Collection[int] = (),
        tallies: Mapping[int, torch.Tensor] = MappingProxyType({}),
        planned: PlannedAttention | None = None,
        value_sums: ValueSums | None = None,
    ):
        self.dense = frozenset(dense)
        self.plans, self.scales, self.encoders = plans, scales, encoders
        self.tallies, self.planned, self.value_sums = tallies, planned, value_sums
        self.budgets = tuple(dict.fromkeys(plan.budget for plan in plans))
        self.shape, self.device = shape, device
        self._static: Buffers | None = None
        self._scratch: dict[tuple, Any] = {}

    def _make_buffers(self, bs: int, width: int) -> Buffers:
        kinds = (self.plans, self.encoders, self.shape)
        sizes = BufferSizes.of(*kinds, bs=bs, width=width, dense=bool(self.dense))
        return Buffers(sizes, self.budgets, self.device)

    def allocate_static(self, max_bs: int) -> None:
        """Allocate what captured graphs of up to `max_bs` rows read."""
        self._static = self._make_buffers(max_bs, self.shape.context_len)
        if self.planned is not None:
            self.planned.allocate_static(max_bs)
        kinds = {encoder_kind(encoder): encoder for encoder in self.encoders.values()}
        self._scratch = {kind: encoder.step_scratch(max_bs) for kind, encoder in kinds.items()}

    def prepare(self, batch: Batch, *, graph: bool) -> None:
        """Make ready for one step: before its kernels run, are captured or are replayed.

        Parameters
        ----------
        batch : Batch
            With CUDA-graph padding rows (``seq_lens`` 1, request 0) where `graph` is set.
        graph : bool
            Whether the step's kernels are captured or replayed.
        """
        bs, longest = batch.rows.shape[0], int(batch.seq_lens_cpu.max())
        if graph:
            assert self._static is not None, "SGLang calls init_cuda_graph_state before capture"
            self.buffers = self._static
        else:
            self.buffers = self._make_buffers(bs, eager_width(longest, self.shape.context_len))
        self.bs, self.graph = bs, graph
        if self.planned is not None:
            self.planned.prepare(batch.seq_lens_cpu, graph=graph)
        if self.value_sums is not None:
            self.buffers.requests[:bs].copy_(batch.rows)
        copy_rows(
            batch.req_to_token,
            batch.rows,
            batch.seq_lens,
            longest=longest,
            shares=self.buffers.shares,
            token_slots=self.buffers.token_slots,
            lengths=self.buffers.seq_lens,
            budgets=self.buffers.share_budgets,
        )
        # A captured launch serves all lengths, so the buffers' width decides, not these rows'.
        width = self.buffers.token_slots.shape[1]
        self.groups = self.buffers.groups if may_share(bs, width) else None
        if self.groups is not None:
            slots, lengths = self.buffers.token_slots[:bs], self.buffers.seq_lens[:bs]
            group_rows(slots, lengths, longest=longest, groups=self.groups)

    def forget(self) -> None:
        """As of `CpuDecoder`: launches read the encoders' tensors, so there is nothing to do."""

    def decode(
        self,
        plan: LayerPlan,
        q: torch.Tensor,
        cache: LayerCache,
        new_keys: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Attend each row of ``q [bs, Hq, D]`` over its selected slots: ``[bs, Hq, D]``.

        In a dense layer over its whole context. No host synchronisation; safe to capture after
        `prepare` with ``graph=True``. Parameters are those of `CpuDecoder.decode`.
        """
        if plan.dense:
            return self._decode_dense(plan.layer, q, cache)
        buffers, bs = self.buffers, self.bs
        where = (buffers.token_slots[:bs], buffers.seq_lens[:bs], buffers.budgets[plan.budget][:bs])
        k = k_max(plan.budget, self.shape.context_len, where[0].shape[1])
        encoder, tally = self.encoders.get(plan.layer), self.tallies.get(plan.layer)
        if encoder is None:
            slots = self._select_without_codes(plan, q, cache.keys, where, k)
        else:
            if new_keys is None:
                queries = encoder.encode_queries(q)
            else:
                keys, new_slots = new_keys
                queries = encoder.encode_step(
                    q,
                    keys,
                    codes=cache.codes,
                    slots=new_slots,
                    scales=cache.scales,
                    scratch=self._scratch.get(encoder_kind(encoder)) if self.graph else None,
                    tally=tally,
                )
            slots = rank(
                queries.codes,
                cache.codes,
                *where,
                plane_weights=encoder.plane_weights,
                sink=plan.sink,
                recent=plan.recent,
                k_max=k,
                scales=cache.scales,
                scale_bits=encoder.scale_bits,
                bias=queries.bias,
                buffers=buffers.rank[rank_key(encoder)],
                groups=self.groups,
            )
        if self.planned is not None:
            return self.planned.attend(plan, q, cache, slots, where[1], tally)
        tokens = (q, cache.keys, cache.values, slots, *where[1:])
        scale = self.scales[plan.layer]
        left_out = None
        if self.value_sums is not None:
            left_out = self.value_sums.step(plan.layer, buffers.requests[:bs])
        options = {"buffers": buffers.attend, "tally": tally, "left_out": left_out}
        return attend(*tokens, scale=scale, **options)

    def _decode_dense(self, layer: int, q: torch.Tensor, cache: LayerCache) -> torch.Tensor:
        buffers, bs = self.buffers, self.bs
        where = (buffers.token_slots[:bs], buffers.seq_lens[:bs], self.groups)
        tokens = (q, cache.keys, cache.values)
        return attend_dense(*tokens, *where, scale=self.scales[layer], buffers=buffers.dense)

    def _select_without_codes(self, plan, q, keys, where, k: int) -> torch.Tensor:
        """Slots of a layer that ranks by exact scores, or not at all."""
        if plan.ranks == "positions":
            return select_streaming(*where, kv_heads=keys.shape[1], k_max=k, sink=plan.sink)
        scores = self.buffers.scores[: self.bs]
        scale, rows = self.scales[plan.layer], where[:2]
        ends = {"sink": plan.sink, "recent": plan.recent}
        exact_score(q, keys, *rows, scale=scale, out=scores, **ends)
        # One budget for all rows lets `select` use FlashInfer's top-k.
        budgets = k if plan.budget.is_fixed else where[2]
        return select(scores, *rows, budgets, k_max=k)
