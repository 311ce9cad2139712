"""Sparse decoding on a GPU: Triton and FlashInfer, eager or inside SGLang's CUDA graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from hata_kernels.attend import SparseDecode, workspace_bytes
from hata_kernels.encoders import Encoder
from hata_kernels.select import MAX_LEVELS, select, select_streaming
from hata_sglang.config import Budget, LayerPlan
from hata_sglang.decoding.scores import dtype_of_scores, levels_of_scores, write_scores
from hata_sglang.decoding.step import Batch, count_step, counts

#: Bytes per score that `select_topk` takes while it runs: the sort keys, and a copy of them.
TOPK_BYTES = 16


class _Buffers:
    """Device memory that captured graphs, or one eager step, read."""

    def __init__(self, decoder: GpuDecoder, bs: int, width: int, *, graph: bool):
        heads, device = decoder.num_kv_heads, decoder.device
        self.token_slots = torch.empty(bs, width, dtype=torch.int32, device=device)
        self.seq_lens = torch.ones(bs, dtype=torch.int32, device=device)
        self.scores = {
            dtype: torch.empty(bs, heads, width, dtype=dtype, device=device)
            for dtype in decoder.score_dtypes(decoder.plans, decoder.encoders)
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
    encoders : mapping of int to hata_kernels.encoders.Encoder
        On the device, by sparse layer, of those whose method keeps codes.
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
        encoders: Mapping[int, Encoder],
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        context_len: int,
        dtype: torch.dtype,
        device: torch.device,
    ):
        self.plans, self.scales, self.encoders = plans, scales, encoders
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
    def score_dtypes(
        plans: Sequence[LayerPlan], encoders: Mapping[int, Encoder]
    ) -> set[torch.dtype]:
        """Dtypes that these layers' scores need: nearly always one, none for streaming."""
        return {dtype_of_scores(p, encoders.get(p.layer)) for p in plans} - {None}

    @staticmethod
    def graph_bytes(
        plans: Sequence[LayerPlan],
        encoders: Mapping[int, Encoder],
        *,
        max_bs: int,
        num_kv_heads: int,
        context_len: int,
    ) -> int:
        """Device memory in bytes that CUDA graphs of up to `max_bs` rows take for the layers.

        That of `_Buffers`, and the scratch of top-k by PyTorch where a layer selects so.
        """
        k_max = min(max(p.budget.k_max(context_len) for p in plans), context_len)
        item = sum(dtype.itemsize for dtype in GpuDecoder.score_dtypes(plans, encoders))
        if any(_selects_by_topk(p, encoders.get(p.layer)) for p in plans):
            item += TOPK_BYTES
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
        codes: torch.Tensor | None,
        key_scales: torch.Tensor | None,
    ) -> torch.Tensor:
        """Attend each row of ``q [bs, Hq, D]`` over its selected slots: ``[bs, Hq, D]``.

        Parameters are those of `CpuDecoder.decode`. No host synchronisation; safe to capture after
        `prepare` with ``graph=True``.
        """
        buffers, bs, encoder = self.buffers, self.bs, self.encoders.get(plan.layer)
        where = (buffers.token_slots[:bs], buffers.seq_lens[:bs])
        scale = self.scales[plan.layer]
        k = self.k_max(plan.budget, where[0].shape[1])
        budgets = k if plan.budget.is_fixed else buffers.ratio_budgets[plan.budget][:bs]
        dtype = dtype_of_scores(plan, encoder)
        if dtype is None:
            slots = select_streaming(
                *where, budgets, kv_heads=self.num_kv_heads, k_max=k, sink=plan.sink
            )
        else:
            scores = buffers.scores[dtype][:bs]
            tokens = (q, k_cache, codes, key_scales)
            write_scores(plan, encoder, *tokens, *where, scale=scale, out=scores)
            levels = None if plan.budget.is_fixed else levels_of_scores(encoder)
            slots = select(scores, *where, budgets, k_max=k, levels=levels)
        return self.attend[plan.budget, scale].run(q, k_cache, v_cache, slots)


def _selects_by_topk(plan: LayerPlan, encoder: Encoder | None) -> bool:
    """Whether `select` falls back to `select_topk`, as it does where it cannot count scores."""
    if plan.budget.is_fixed or plan.method == "streaming":
        return False
    levels = levels_of_scores(encoder)
    return levels is None or levels > MAX_LEVELS
