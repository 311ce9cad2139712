"""Peak of a GPU's memory, seen from outside of the process that uses it."""

from __future__ import annotations

import threading


class MemoryPeak:
    """Watch the used memory of the first visible GPU for the length of a ``with`` block.

    Read through NVML; other programs on the same GPU are counted in.

    Parameters
    ----------
    on_cpu : bool
        There is nothing to watch.
    interval_s : float, default 0.1

    Attributes
    ----------
    peak_gb : float or None
        1e9 bytes; None on a CPU.
    """

    def __init__(self, *, on_cpu: bool, interval_s: float = 0.1) -> None:
        self.interval_s, self.peak_gb = interval_s, None
        self._end = threading.Event()
        self._thread = None if on_cpu else threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryPeak:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        import torch

        while True:
            # Of the first visible device, by NVML: what every process on it has taken.
            used = torch.cuda.device_memory_used(0) / 1e9
            self.peak_gb = max(used, self.peak_gb or 0.0)
            if self._end.wait(self.interval_s):
                return
