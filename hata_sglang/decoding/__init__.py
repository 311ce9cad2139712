"""One decode step of the sparse layers: encode, rank, attend.

Nothing here knows SGLang: `hata_sglang.seams.backend` hands over tensors.
"""

from hata_sglang.decoding.codebook import CodeBook
from hata_sglang.decoding.cpu import CpuDecoder
from hata_sglang.decoding.gpu import GpuDecoder
from hata_sglang.decoding.step import Batch, LayerCache
from hata_sglang.decoding.value_sums import ValueSums

__all__ = ["Batch", "CodeBook", "CpuDecoder", "GpuDecoder", "LayerCache", "ValueSums"]
