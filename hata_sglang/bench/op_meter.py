"""What ``bench op`` asks of the GPU, in one place: times, bandwidth and free memory."""

from __future__ import annotations

import gc

import torch

from hata_sglang.bench.exact import exact_slots
from hata_sglang.bench.layer import RECENT, SINK, memory_needed
from hata_sglang.bench.op import SparseLayer, dense_step, time_stages
from hata_sglang.bench.shapes import Scenario
from hata_sglang.bench.timing import Timing, copy_bandwidth, time_layers


class GpuMeter:
    """The current CUDA device. Holds the layers of one scenario at a time."""

    #: What a scenario raises that did not fit after all.
    TOO_LARGE = torch.cuda.OutOfMemoryError

    def __init__(self) -> None:
        self.layer: SparseLayer | None = None

    def copy_bandwidth(self) -> float:
        """Bytes per microsecond of a copy."""
        measured = copy_bandwidth()
        self.release()
        return measured

    def missing_bytes(self, scenario: Scenario) -> int:
        """Bytes of GPU memory that a scenario needs beyond what is free; 0 or less: it fits."""
        return memory_needed(scenario) - torch.cuda.mem_get_info()[0]

    def open(self, scenario: Scenario) -> None:
        """Make a scenario's layers, or take those that are there where only the budget differs."""
        same = self.layer is not None and self.layer.scenario.buffers == scenario.buffers
        if not same:
            self.release()
        self.layer = SparseLayer(scenario, self.layer)

    def release(self) -> None:
        """Give the memory back."""
        self.layer = None
        gc.collect()
        torch.cuda.empty_cache()

    def stages(self) -> dict[str, Timing]:
        """Times of our stages, by name."""
        return time_stages(self.layer)

    def dense(self, tensor_cores: bool) -> Timing:
        """Time of FlashInfer's dense decode."""
        return time_layers(dense_step(self.layer, tensor_cores), len(self.layer.layers))

    def exact(self) -> Timing:
        """Time of exact top-k and the same attention."""
        sparse = self.layer

        def step(i: int) -> None:
            layer = sparse.layers[i]
            slots = exact_slots(
                layer.q,
                layer.k_cache,
                layer.token_slots,
                sparse.scenario.k,
                sink=SINK,
                recent=RECENT,
            )
            sparse._attend(layer, slots)

        return time_layers(step, len(sparse.layers))
