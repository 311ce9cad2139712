"""A decode step on a CPU in one compiled call per sparse layer: encode, rank, attend.

PyTorch takes some microseconds for every small operation, and several times as many when a model's
weights have just gone through the processor's caches; a layer's step is a hundred of them. Numba,
which SGLang brings, compiles it all into one function (``*_kernels.py``); the classes here hand it
what PyTorch has. The references are those of the other sub-packages.

To import this compiles, for some seconds where no compiled code is found on disk
(`hata_kernels.cpu.compiling`).
"""

from .step import Rows, SparseLayer
from .step_kernels import decode_layer

__all__ = ["Rows", "SparseLayer", "where_from"]


def where_from() -> str:
    """Say where this process's compiled code comes from."""
    stats = decode_layer.stats
    if stats.cache_path is None:
        return "compiled, and kept nowhere"
    return f"{'read from' if stats.cache_hits else 'compiled, and kept in'} {stats.cache_path}"
