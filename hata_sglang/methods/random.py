"""Random hyperplanes (Charikar 2002): the floor of all codes."""

from __future__ import annotations

import torch

from hata_kernels.encoders import LinearEncoder
from hata_sglang.methods.base import Method


def _hyperplanes(
    generator: torch.Generator, *, bits: int, num_kv_heads: int, group: int, head_dim: int
) -> dict[str, torch.Tensor]:
    return {"weight": torch.randn((num_kv_heads, head_dim, bits), generator=generator)}


METHOD = Method(
    name="random",
    ranks="codes",
    summary="random hyperplanes, the floor of all codes",
    paper="https://doi.org/10.1145/509907.509965",
    encoder=LinearEncoder,
    tensors=_hyperplanes,
    seeded=True,
)
