"""Static GPU buffers of one attention layer and one batch, as a server keeps them."""

from __future__ import annotations

import math

import torch

from hata_kernels.encoders import Encoder
from hata_kernels.score.distance import DISTANCES
from hata_sglang.bench.scenarios import Scenario
from hata_sglang.bench.shapes import Shape
from hata_sglang.methods import methods

#: More bytes of codes than this, over all layers, do not fit any L2 cache (that of an H100: 50 MB).
COLD_BYTES = 200e6
#: Bound of the K and V of all layers.
POOL_BYTES = 40e9
SINK, RECENT = 16, 64
#: Where everything lies, and its dtype; tests of the arithmetic set the CPU and float32.
DEVICE, DTYPE = "cuda", torch.bfloat16


def random_encoder(shape: Shape, method: str, bits: int) -> Encoder:
    """Encoder of random weights, which cost what trained ones do; `DTYPE`, on `DEVICE`."""
    heads, dim = shape.kv_heads, shape.dim
    if method == "hata":
        tensors = {"weight": torch.randn(heads, dim, bits)}
        options = {}
    else:
        half = bits // 2
        tensors = {
            "key_weight": torch.randn(heads, dim, bits),
            "key_bias": torch.randn(heads, bits),
            "query_weight": torch.randn(heads, shape.group * dim, bits),
            "query_bias": torch.randn(heads, bits),
            "residual_weight": (dim / half) ** 0.5 * torch.randn(heads, half, half),
        }
        # Farther tokens score less, by as much as scores differ.
        falling = torch.linspace(0, -((shape.group * dim * bits) ** 0.5), DISTANCES)
        tensors["distance_bias"] = falling.repeat(heads, 1)
        options = {"stages": 2}
    sizes = {"num_kv_heads": heads, "group": shape.group, "head_dim": dim}
    return methods()[method].encoder.from_tensors(tensors, **sizes, **options).to(DEVICE, DTYPE)


class LayerBuffers:
    """K, V, codes and slots of one layer.

    Parameters
    ----------
    scenario : Scenario
    encoder : Encoder
        On the GPU.
    slots : int
        Of the pool; slot 0 is reserved.
    """

    def __init__(self, scenario: Scenario, encoder: Encoder, slots: int) -> None:
        shape, batch = scenario.shape, scenario.batch
        make = {"device": DEVICE, "dtype": DTYPE}
        self.q = torch.randn(batch, shape.q_heads, shape.dim, **make)
        self.new_k = torch.randn(batch, shape.kv_heads, shape.dim, **make)
        self.new_places = torch.randint(1, slots, (batch,), device=DEVICE)
        self.k_cache = torch.randn(slots, shape.kv_heads, shape.dim, **make)
        self.v_cache = torch.randn(slots, shape.kv_heads, shape.dim, **make)
        self.codes = torch.empty(
            slots, shape.kv_heads, encoder.words, dtype=torch.int32, device=DEVICE
        )
        for first in range(0, slots, 65536):
            part = torch.arange(first, min(first + 65536, slots), device=DEVICE)
            encoder.encode_keys(self.k_cache[part], codes=self.codes, slots=part)
        # A pool that has served for a while: a request's slots lie anywhere in it.
        order = 1 + torch.randperm(slots - 1, device=DEVICE)[: scenario.tokens].int()
        shared = order[: scenario.shared].expand(batch, -1)
        own = order[scenario.shared :].view(batch, -1)
        self.token_slots = torch.cat([shared, own], dim=1)


def make_layers(scenario: Scenario, encoder: Encoder) -> list[LayerBuffers]:
    """Layers whose codes do not fit the L2 together, as many as fit `POOL_BYTES`; two or more."""
    shape, slots = scenario.shape, scenario.tokens + 1
    codes = slots * shape.kv_heads * encoder.code_bytes
    kv = 2 * slots * shape.kv_heads * shape.dim * 2
    count = max(2, min(32, math.ceil(COLD_BYTES / codes), int(POOL_BYTES / kv)))
    return [LayerBuffers(scenario, encoder, slots) for _ in range(count)]
