"""Sparse decoding on a GPU: Triton and FlashInfer, eager or inside SGLang's CUDA graphs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hata_kernels.attend import SparseDecode, workspace_bytes
from hata_kernels.encode import encode
from hata_kernels.score import score, score_dtype, score_levels
from hata_kernels.select import select
from hata_sglang.config import Budget, LayerPlan
from hata_sglang.decoding.step import Batch, count_step, counts


class _Buffers:
    """Device memory that captured graphs, or one eager step, read."""

    def __init__(self, decoder: GpuDecoder, bs: int, width: int, *, graph: bool):
        heads, device = decoder.num_kv_heads, decoder.device
        self.token_slots = torch.empty(bs, width, dtype=torch.int32, device=device)
        self.seq_lens = torch.ones(bs, dtype=torch.int32, device=device)
        self.scores = {
            dtype: torch.empty(bs, heads, width, dtype=dtype, device=device)
            for dtype in decoder.score_dtypes(decoder.plans, decoder.group_size)
        }
        # FlashInfer's index buffer, filled and read by one layer after the other.
        k_max = max(decoder.k_max(budget, decoder.context_len) for budget, _ in decoder.groups)
        self.pages = torch.zeros(
            bs * heads * k_max if graph else 0, dtype=torch.int32, device=device
        )
        self.ratio_budgets = {
            budget: torch.ones(bs, dtype=torch.int32, device=device)
            for budget, _ in decoder.groups
            if not budget.is_fixed
        }


class GpuDecoder:
    """Decodes the sparse layers without waiting for the host.

    In a CUDA graph every kernel reads static buffers: a private copy of the rows of
    ``req_to_token`` (SGLang may free and rewrite the originals while a graph replays) and one
    FlashInfer wrapper per captured batch size and distinct budget, planned from host lengths
    before each replay and only where these changed.

    Parameters
    ----------
    plans : sequence of LayerPlan
        The sparse layers.
    scales : dict of int to float
        Softmax scale per sparse layer.
    num_heads, num_kv_heads, head_dim : int
        Of this rank.
    context_len : int
        Longest context in tokens; the width of the static buffers.
    dtype : torch.dtype
        Of q and the KV cache, bfloat16 or float16.
    device : torch.device
    """

    def __init__(
        self,
        plans: Sequence[LayerPlan],
        scales: dict[int, float],
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        context_len: int,
        dtype: torch.dtype,
        device: torch.device,
    ):
        self.plans, self.scales = plans, scales
        # Layers of one budget and scale share a FlashInfer plan.
        self.groups = tuple(dict.fromkeys((p.budget, scales[p.layer]) for p in plans))
        self.group_size = num_heads // num_kv_heads
        self.num_kv_heads, self.head_dim = num_kv_heads, head_dim
        self.context_len, self.dtype, self.device = context_len, dtype, device
        self._wrappers: dict[tuple, SparseDecode] = {}
        self._workspace = torch.zeros(0, dtype=torch.uint8, device=device)
        self._static: _Buffers | None = None

    def k_max(self, budget: Budget, width: int) -> int:
        """Slots that a row of at most `width` tokens can need under this budget."""
        return min(budget.k_max(self.context_len), width)

    @staticmethod
    def score_dtypes(plans: Sequence[LayerPlan], group: int) -> set[torch.dtype]:
        """Dtypes that these layers' scores need; nearly always one."""
        return {score_dtype(group, p.bits) for p in plans}

    @staticmethod
    def graph_bytes(
        plans: Sequence[LayerPlan], *, max_bs: int, group: int, num_kv_heads: int, context_len: int
    ) -> int:
        """Device memory in bytes that CUDA graphs of up to `max_bs` rows take for `_Buffers`."""
        k_max = min(max(p.budget.k_max(context_len) for p in plans), context_len)
        item = sum(dtype.itemsize for dtype in GpuDecoder.score_dtypes(plans, group))
        per_row = 4 * context_len + num_kv_heads * (context_len * item + 4 * k_max)
        return max_bs * per_row

    def allocate_static(self, max_bs: int) -> None:
        """Allocate what captured graphs of up to `max_bs` rows read."""
        self._static = _Buffers(self, max_bs, self.context_len, graph=True)

    def covers_context(self, plan: LayerPlan) -> bool:
        """False: short rows are attended in full by the same captured kernels."""
        return False

    def prepare(self, batch: Batch, *, graph: bool, real_rows: int | None = None) -> None:
        """Make ready for one step: before its kernels run, are captured or are replayed.

        Parameters
        ----------
        batch : Batch
            With CUDA-graph padding rows (``seq_lens`` 1, request 0) where `graph` is set.
        graph : bool
            Whether the step's kernels are captured or replayed.
        real_rows : int, optional
            Rows to count, without padding; 0 in a capture. Default: all.
        """
        bs, longest = batch.rows.shape[0], int(batch.seq_lens_cpu.max())
        if graph:
            assert self._static is not None, "SGLang calls init_cuda_graph_state before capture"
            self.buffers = self._static
        else:
            self.buffers = _Buffers(self, bs, longest, graph=False)
        self.bs = bs
        self.buffers.token_slots[:bs, :longest].copy_(batch.req_to_token[batch.rows, :longest])
        self.buffers.seq_lens[:bs].copy_(batch.seq_lens)
        for budget, out in self.buffers.ratio_budgets.items():
            out[:bs].copy_(budget.tokens_tensor(batch.seq_lens))
        self.attend: dict[tuple[Budget, float], SparseDecode] = {}
        for group in self.groups:
            self.attend[group] = self._wrapper(group, graph)
            self.attend[group].plan(counts(group[0], batch.seq_lens_cpu))
        rows = bs if real_rows is None else real_rows
        if rows:
            count_step(self.plans, batch.seq_lens_cpu[:rows])

    def _wrapper(self, group: tuple[Budget, float], graph: bool) -> SparseDecode:
        # A captured wrapper serves one batch size; an eager one any up to its own, and is kept:
        # its last plan may still be on its way to the device.
        batch = self.bs if graph else max(16, 1 << (self.bs - 1).bit_length())
        key = (graph, batch, *group)
        if key not in self._wrappers:
            budget, scale = group
            self._wrappers[key] = SparseDecode(
                max_batch=batch,
                num_kv_heads=self.num_kv_heads,
                group=self.group_size,
                head_dim=self.head_dim,
                k_max=self.k_max(budget, self.context_len),
                dtype=self.dtype,
                device=self.device,
                workspace=self._workspace_for(batch),
                scale=scale,
                use_cuda_graph=graph,
                pages=self.buffers.pages if graph else None,
            )
        return self._wrappers[key]

    def _workspace_for(self, batch: int) -> torch.Tensor:
        """Scratch for partial results, shared by the wrappers: they run one after the other."""
        sm_count = torch.cuda.get_device_properties(self.device).multi_processor_count
        rows = batch * self.num_kv_heads
        needed = workspace_bytes(rows, self.group_size, self.head_dim, sm_count)
        if self._workspace.numel() < needed:  # wrappers made before keep the smaller one
            self._workspace = torch.zeros(needed, dtype=torch.uint8, device=self.device)
        return self._workspace

    def decode(
        self,
        plan: LayerPlan,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        codes: torch.Tensor,
        weight: torch.Tensor,
    ) -> torch.Tensor:
        """Attend each row of ``q [bs, Hq, D]`` over its selected slots: ``[bs, Hq, D]``.

        Parameters are those of `CpuDecoder.decode`; `weight` has q's dtype. No host
        synchronisation; safe to capture after `prepare` with ``graph=True``.
        """
        buffers, bs = self.buffers, self.bs
        where = (buffers.token_slots[:bs], buffers.seq_lens[:bs])
        scores = buffers.scores[score_dtype(self.group_size, plan.bits)][:bs]
        score(encode(q, weight), codes, *where, sink=plan.sink, recent=plan.recent, out=scores)
        k = self.k_max(plan.budget, scores.shape[-1])
        if plan.budget.is_fixed:
            slots = select(scores, *where, k, k_max=k)
        else:
            slots = select(
                scores,
                *where,
                buffers.ratio_budgets[plan.budget][:bs],
                k_max=k,
                levels=score_levels(self.group_size, plan.bits),
            )
        return self.attend[plan.budget, self.scales[plan.layer]].run(q, k_cache, v_cache, slots)
