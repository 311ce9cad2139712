"""Timing on a GPU: CUDA graphs, events, a cold L2, medians."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.autograd import DeviceType

from hata_kernels import chain

#: Calls in a timed graph, at least.
MIN_CALLS = 16


@dataclass(frozen=True)
class Timing:
    """Microseconds per call: 20th percentile, median, 80th percentile."""

    p20: float
    p50: float
    p80: float

    @classmethod
    def of(cls, values: list[float]) -> Timing:
        """Of one value per replay."""
        low, _, _, high = statistics.quantiles(values, n=5)
        return cls(low, statistics.median(values), high)


def capture(step: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """Warm up on a side stream, then capture."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph


def capture_layers(step: Callable[[int], object], layers: int) -> torch.cuda.CUDAGraph:
    """Capture one call per layer, in turn."""

    def everything() -> None:
        for layer in range(layers):
            step(layer)

    return capture(everything)


def time_layers(step: Callable[[int], object], layers: int, replays: int = 30) -> Timing:
    """Time one call, in a graph of one call per layer.

    Parameters
    ----------
    step : callable
        Takes a layer's number. With more bytes in all layers' buffers than the L2 holds, every
        call finds it as cold as in a model.
    layers : int
    replays : int, default 30

    Returns
    -------
    Timing
        Of a call. A graph's launch is spread over at least `MIN_CALLS`, as a model's is over its
        layers.
    """
    calls = layers * max(1, MIN_CALLS // layers)
    graph = capture_layers(lambda call: step(call % layers), calls)
    for _ in range(3):
        graph.replay()
    pairs = []
    for _ in range(replays):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        pairs.append((start, end))
    torch.cuda.synchronize()
    return Timing.of([1000 * start.elapsed_time(end) / calls for start, end in pairs])


def kernel_times(
    step: Callable[[int], object], layers: int, names: Sequence[str], replays: int = 10
) -> dict[str, Timing]:
    """Time single kernels inside of a graph of one call per layer, by ``torch.profiler``.

    Parameters
    ----------
    step : callable
        Takes a layer's number.
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
    chain.ENABLED = False
    try:
        graph = capture_layers(step, layers)
    finally:
        chain.ENABLED = True
    for _ in range(3):
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
