"""Attend over the selected tokens only (HATA, section 3.2, Algorithm 1, last step).

CPU and GPU differ in shape of use, not only in code: FlashInfer plans its work on the host once
per step, so the GPU side is an object with `plan` and `run`.
"""

from .naive import attend_naive
from .sparse_decode import SparseDecode, workspace_bytes

__all__ = ["SparseDecode", "attend_naive", "workspace_bytes"]
