"""Attend over the selected tokens only (HATA, section 3.2, Algorithm 1, last step), or over all.

`attend` gathers and attends, on a CPU or a GPU, with nothing planned on the host. `SparseDecode`
is FlashInfer's kernels instead, which plan their work on the host whenever lengths change, so it is
an object with `plan` and `run`. `attend_dense` is for layers that select nothing: it attends over
whole contexts, and reads a prefix that several requests share once.
"""

from .api import attend, attend_dense
from .checks import MAX_GROUP
from .dense import DenseBuffers, fits_dense
from .gather import AttendBuffers
from .left_out import RATIOS, LeftOut, left_out_weight, mix_left_out
from .naive import attend_naive
from .sparse_decode import SparseDecode, workspace_bytes

__all__ = [
    "MAX_GROUP",
    "RATIOS",
    "AttendBuffers",
    "DenseBuffers",
    "LeftOut",
    "SparseDecode",
    "attend",
    "attend_dense",
    "attend_naive",
    "fits_dense",
    "left_out_weight",
    "mix_left_out",
    "workspace_bytes",
]
