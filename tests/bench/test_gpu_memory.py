"""The peak of the GPU's memory, with numbers of our own in the place of the driver's."""

import time

import torch

from hata_sglang.bench.gpu_memory import MemoryPeak


def test_peak(monkeypatch):
    used = iter([1e9, 3e9])
    monkeypatch.setattr(torch.cuda, "device_memory_used", lambda device: next(used, 2e9))
    with MemoryPeak(on_cpu=False, interval_s=0.01) as memory:
        time.sleep(0.2)
    assert memory.peak_gb == 3.0


def test_a_short_block_is_measured_once(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_memory_used", lambda device: 5e9)
    with MemoryPeak(on_cpu=False, interval_s=60) as memory:
        pass
    assert memory.peak_gb == 5.0


def test_nothing_on_a_cpu():
    with MemoryPeak(on_cpu=True) as memory:
        pass
    assert memory.peak_gb is None
