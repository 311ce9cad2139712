"""FlashInfer's attention over the selections: planned on the host where counts change.

`attend: flashinfer` in the YAML. A plan holds for the numbers of tokens that a step's rows attend.
With a budget in tokens they stay the same once every context is longer than it, so that most steps
plan nothing; with a share of the context every step plans.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch

from hata_kernels.attend import SparseDecode, workspace_bytes
from hata_kernels.bits import power_of_2
from hata_sglang.config import Budget, LayerPlan
from hata_sglang.decoding.step import LayerCache, counts
from hata_sglang.shape import AttentionShape, ModelShape

Attend = Literal["triton", "flashinfer"]

#: The faster of the two by device, query heads per KV head and head size, as `hata-sglang bench op`
#: measures them (benchmarks/data/op.csv); what is not listed takes Triton's, which needs no plan.
#: On an H200 FlashInfer's took 1.2 to 2.6 times as long in each of 22 scenarios.
FASTER: Mapping[tuple[str, int, int], Attend] = {
    ("NVIDIA H200", 4, 128): "triton",
    ("NVIDIA H200", 1, 128): "triton",
}


def choose_attend(
    asked: str, shape: AttentionShape, device: torch.device, mean: bool = False
) -> Attend:
    """Who attends over selections: what the YAML's ``attend`` asks for, on a GPU.

    ``auto`` is Triton's where the mean of the values left out is mixed in: FlashInfer's cannot.
    """
    if asked != "auto":
        return asked
    if mean:
        return "triton"
    where = (torch.cuda.get_device_name(device), shape.group, shape.head_dim)
    return FASTER.get(where, "triton")


class Kind(NamedTuple):
    """Layers that share a plan."""

    budget: Budget
    scale: float


class Scratch(NamedTuple):
    """What wrappers of one stream share: partial results, page indices."""

    workspace: torch.Tensor
    pages: torch.Tensor


class PlannedAttention:
    """Attends for all sparse layers: a wrapper for each kind of layer and captured batch size.

    Parameters
    ----------
    plans : sequence of LayerPlan
        The sparse layers.
    scales : mapping of int to float
        Softmax scale by layer.
    shape : ModelShape
    dtype : torch.dtype
        Of queries and cache, bfloat16 or float16.
    device : torch.device
        A CUDA device.
    """

    def __init__(
        self,
        plans: Sequence[LayerPlan],
        scales: Mapping[int, float],
        shape: ModelShape,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.shape, self.dtype, self.device = shape, dtype, device
        self.kinds = {plan.layer: Kind(plan.budget, scales[plan.layer]) for plan in plans}
        self.k_max = max(kind.budget.k_max(shape.context_len) for kind in self.kinds.values())
        self._static: Scratch | None = None
        self._captured: dict[int, dict[Kind, SparseDecode]] = {}
        self._eager: dict[Kind, SparseDecode] = {}
        self._eager_bs = 0

    def allocate_static(self, max_bs: int) -> None:
        """Allocate what captured graphs of up to `max_bs` rows share."""
        self._static = self._make_scratch(max_bs)

    def _make_scratch(self, bs: int) -> Scratch:
        rows = bs * self.shape.num_kv_heads
        size = _workspace_bytes(self.shape, bs, self.device)
        make = {"device": self.device}
        return Scratch(
            torch.zeros(size, dtype=torch.uint8, **make),
            torch.empty(rows * self.k_max, dtype=torch.int32, **make),
        )

    def prepare(self, seq_lens_cpu: torch.Tensor, *, graph: bool) -> None:
        """Plan one step, before its kernels run, are captured or are replayed.

        Parameters
        ----------
        seq_lens_cpu : torch.Tensor
            ``[bs]`` on the host, padding rows with 1.
        graph : bool
            Whether the step's kernels are captured or replayed.
        """
        bs = len(seq_lens_cpu)
        if graph:
            assert self._static is not None, "SGLang calls init_cuda_graph_state before capture"
            if bs not in self._captured:  # a captured launch is of one batch size
                self._captured[bs] = self._make_wrappers(bs, self._static, graph=True)
            self._step = self._captured[bs]
        else:
            if bs > self._eager_bs:
                # These take every smaller step, too; smaller ones are let go with their scratch.
                self._step = self._eager = {}
                self._eager_bs = power_of_2(bs)
                scratch = self._make_scratch(self._eager_bs)
                self._eager = self._make_wrappers(self._eager_bs, scratch, graph=False)
            self._step = self._eager
        for kind, wrapper in self._step.items():
            wrapper.plan(counts(kind.budget, seq_lens_cpu))

    def _make_wrappers(self, bs: int, scratch: Scratch, *, graph: bool) -> dict[Kind, SparseDecode]:
        return {
            kind: SparseDecode(
                max_batch=bs,
                **self.shape.sizes,
                k_max=kind.budget.k_max(self.shape.context_len),
                dtype=self.dtype,
                device=self.device,
                scale=kind.scale,
                use_cuda_graph=graph,
                **scratch._asdict(),
            )
            for kind in set(self.kinds.values())
        }

    def attend(
        self,
        plan: LayerPlan,
        q: torch.Tensor,
        cache: LayerCache,
        slots: torch.Tensor,
        seq_lens: torch.Tensor,
        tally: torch.Tensor | None,
    ) -> torch.Tensor:
        """Attend each row of ``q [bs, Hq, D]`` over its ``slots [bs, Hkv, k]``, likewise."""
        run = self._step[self.kinds[plan.layer]].run
        return run(q, cache.keys, cache.values, slots, seq_lens=seq_lens, tally=tally)


def planned_bytes(
    plans: Sequence[LayerPlan], shape: ModelShape, bs: int, device: torch.device
) -> int:
    """Bytes of what the wrappers for `bs` rows of these layers share, on a GPU.

    Eager steps round rows up to a power of 2.
    """
    bs = power_of_2(bs)
    k_max = max(plan.budget.k_max(shape.context_len) for plan in plans)
    pages = 4 * bs * shape.num_kv_heads * k_max
    return _workspace_bytes(shape, bs, device) + pages


def _workspace_bytes(shape: AttentionShape, bs: int, device: torch.device) -> int:
    sm_count = torch.cuda.get_device_properties(device).multi_processor_count
    return workspace_bytes(bs * shape.num_kv_heads, shape.group, shape.head_dim, sm_count)
