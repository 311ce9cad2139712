"""Timing on a GPU: FlashInfer's CUDA graphs, over layers that keep the L2 cold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
import torch
from torch.autograd import DeviceType

from hata_kernels import chain

#: Calls in a timed graph, at least: its launch is spread over them, as a model's is over layers.
MIN_CALLS = 16


@dataclass(frozen=True)
class Timing:
    """Microseconds per call: 20th percentile, median, 80th percentile."""

    p20: float
    p50: float
    p80: float

    @classmethod
    def of(cls, values: list[float]) -> Timing:
        """Of one value or more."""
        return cls(*np.percentile(values, (20, 50, 80)).tolist())


def time_layers(step: Callable[[int], object], layers: int, replays: int = 30) -> Timing:
    """Time one call, in a graph of calls for each layer in turn.

    Parameters
    ----------
    step : callable
        Takes a layer's number. With more bytes in all layers' buffers than the L2 holds, every
        call finds it as cold as in a model; FlashInfer's own copies of arguments would count a
        whole pool where a call reads a part.
    layers : int
    replays : int, default 30

    Returns
    -------
    Timing
        Of a call.
    """
    from flashinfer.testing import bench_gpu_time_with_cudagraph

    turn = cycle(range(layers))
    milliseconds = bench_gpu_time_with_cudagraph(
        lambda: step(next(turn)),
        dry_run_iters=3,
        repeat_iters=replays,
        num_iters_within_graph=layers * max(1, MIN_CALLS // layers),
        cold_l2_cache=False,
    )
    return Timing.of([1e3 * each for each in milliseconds])


def kernel_times(
    step: Callable[[int], object], layers: int, names: Sequence[str], replays: int = 10
) -> dict[str, Timing]:
    """Time single kernels of calls for each layer in turn, by ``torch.profiler``.

    Parameters
    ----------
    step : callable
        Takes a layer's number; called before, so that nothing is left to compile.
    layers : int
    names : sequence of str
        What the kernels' names begin with.
    replays : int, default 10

    Returns
    -------
    dict of str to Timing
        Microseconds of one launch by itself (`hata_kernels.chain` is off), by name; without those
        that the profiler did not see (it sees none where CUPTI is taken or missing).
    """
    graph = torch.cuda.CUDAGraph()
    chain.ENABLED = False
    try:
        step(0)  # compiled anew without the chain
        with torch.cuda.graph(graph):
            for layer in range(layers):
                step(layer)
    finally:
        chain.ENABLED = True
    graph.replay()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(replays):
            graph.replay()
        torch.cuda.synchronize()
    values: dict[str, list[float]] = {name: [] for name in names}
    for event in profile.events():
        for name in names:
            if event.name.startswith(name) and event.device_type == DeviceType.CUDA:
                values[name].append(event.time_range.elapsed_us())
    return {name: Timing.of(each) for name, each in values.items() if len(each) > 1}


def copy_bandwidth(size: int = 2**30) -> float:
    """Measured bandwidth of a copy in bytes per microsecond, reads and writes counted."""
    a = torch.empty(size, dtype=torch.uint8, device="cuda")
    b = torch.empty_like(a)
    return 2 * size / time_layers(lambda _: b.copy_(a), 4).p50
