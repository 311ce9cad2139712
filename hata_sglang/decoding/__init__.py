"""One decode step of the sparse layers: encode q, score, select, attend.

Nothing here knows SGLang: `hata_sglang.seams.backend` hands over tensors.
"""

from hata_sglang.decoding.cpu import CpuDecoder
from hata_sglang.decoding.gpu import GpuDecoder

__all__ = ["CpuDecoder", "GpuDecoder"]
