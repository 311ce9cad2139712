"""Signs of randomly rotated keys: codes from the keys' mean and size, without training.

The arithmetic is that of RaBitQ (Gao and Long 2024, arXiv 2405.12497), which RaBitQCache (Li et
al. 2026, arXiv 2606.31519) brought to the KV cache. What differs is in docs/asymmetric.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from hata_kernels.encoders import AsymmetricEncoder
from hata_sglang.methods.base import Method
from hata_sglang.methods.learning.layer_data import SequenceData, scale_step

#: What the bits of the best two-bit quantiser of a Gaussian stand for, in standard deviations: its
#: four levels are +-0.9816 +- 0.5287, and its upper threshold is 0.9816 (Max 1960, table I).
TWO_BIT_LEVELS = (0.9816, 0.5287)


@dataclass(frozen=True)
class RotateRecipe:
    """What decides the weights, besides keys and seed.

    Parameters
    ----------
    stages : {1, 2} or None
        1: the signs of all projections. 2: half as many projections, in four levels. None stands
        for 2 where that leaves a projection for every dimension of a head, and for 1 elsewhere.
    query_bits : int
        B, bits of the query when it is served.
    clip : float
        Range of the quantised query, in its root mean squares.
    scale_bits : {0, 8, 16} or None
        Bits of a scale per key, or 0 for none. None stands for 8 with one stage, whose signs say
        nothing of a key's size, and for 0 with two, whose levels do.
    """

    #: Nothing is trained. No field, so that no option can ask for steps.
    steps: ClassVar[int] = 0

    stages: Literal[1, 2] | None = None
    query_bits: int = 4
    clip: float = 2.5
    scale_bits: Literal[0, 8, 16] | None = None

    def of_size(self, bits: int, head_dim: int) -> RotateRecipe:
        """The recipe with all numbers that `bits` and `head_dim` decide."""
        stages = self.stages or (2 if bits >= 2 * head_dim else 1)
        scale_bits = (8 if stages == 1 else 0) if self.scale_bits is None else self.scale_bits
        return replace(self, stages=stages, scale_bits=scale_bits)

    def card_entry(self) -> dict[str, str | int]:
        """What the card of the weights records."""
        return {
            "steps": self.steps,
            "keys": "centred by their mean, rotated at random (QR of a Gaussian), divided by the "
            "root mean square of all projections",
            "query": "sum of the group, rotated likewise",
        }


class RotateTrainer:
    """Makes the weights of all KV heads of their keys' mean and size.

    Parameters
    ----------
    data : list of SequenceData
        Captures, of one layer or of several with all their heads; only their keys are looked at.
    bits : int
    recipe : RotateRecipe
    seed : int
        Of the rotation.
    """

    def __init__(
        self, data: list[SequenceData], bits: int, recipe: RotateRecipe, seed: int
    ) -> None:
        kv_heads, _, self.group, dim = data[0].q.shape
        self.recipe = recipe = recipe.of_size(bits, dim)
        self.stages = recipe.stages
        rotation = random_rotation(kv_heads, dim, bits // self.stages, seed).to(data[0].k.device)
        keys = sum(d.k.shape[1] for d in data)
        mean = sum(d.k.sum(1, keepdim=True) for d in data) / keys  # [Hkv, 1, D]
        squares = sum(((d.k - mean) @ rotation).square().sum((1, 2), keepdim=True) for d in data)
        # One size per KV head: the projections of a rotated key are of one distribution.
        size = (squares / (keys * rotation.shape[2])).sqrt().clamp_min(1e-4)
        self.tensors = self._tensors(mean, rotation, size)
        if recipe.scale_bits:
            weight = rotation / size
            # As the encoder takes them: the mean size of a key's first-stage projections.
            sizes = [((d.k - mean) @ weight).abs().mean(-1) for d in data]
            self.tensors["scale_step"] = scale_step(torch.cat(sizes, dim=1), recipe.scale_bits)

    def _tensors(
        self, mean: torch.Tensor, rotation: torch.Tensor, size: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Weights of the encoder; `mean` is ``[Hkv, 1, D]`` and `size` ``[Hkv, 1, 1]``."""
        weight = (rotation / size).repeat(1, 1, self.stages)
        levels = (1.0,) if self.stages == 1 else TWO_BIT_LEVELS
        # A bit says that the key's projection is `level * size` on one side of what is known.
        query = torch.cat([level * size * rotation for level in levels], dim=-1)
        tensors = {
            "key_weight": weight,
            "key_bias": -(mean @ weight)[:, 0],
            # The group asks with the sum of its queries.
            "query_weight": query.repeat(1, self.group, 1),
            "query_bias": torch.zeros_like(query[:, 0]),
        }
        if self.stages == 2:
            kv_heads, _, first = rotation.shape
            identity = torch.eye(first, device=rotation.device).repeat(kv_heads, 1, 1)
            tensors["residual_weight"] = -TWO_BIT_LEVELS[0] * identity
        return tensors

    def step(self) -> torch.Tensor:
        """Raise: there is nothing to train, and the recipe has no steps."""
        raise NotImplementedError("rotate: expected no training step, found one")

    def encoder(self) -> AsymmetricEncoder:
        """The encoder, float32, with a copy of the weights."""
        kv_heads, dim, _ = self.tensors["key_weight"].shape
        return AsymmetricEncoder(
            {name: tensor.clone() for name, tensor in self.tensors.items()},
            num_kv_heads=kv_heads,
            group=self.group,
            head_dim=dim,
            query_bits=self.recipe.query_bits,
            clip=self.recipe.clip,
            scale_bits=self.recipe.scale_bits,
            stages=self.stages,
        )


def random_rotation(kv_heads: int, dim: int, count: int, seed: int) -> torch.Tensor:
    """Directions to project on, another random set for each KV head.

    Parameters
    ----------
    kv_heads, dim : int
    count : int
        Directions. Up to `dim`, they are orthogonal and of length 1. More are a tight frame: a
        larger rotation's first `dim` rows.
    seed : int

    Returns
    -------
    torch.Tensor
        ``[kv_heads, dim, count]`` float32, on the CPU.
    """
    larger = max(dim, count)
    generator = torch.Generator().manual_seed(seed)
    gaussian = torch.randn(kv_heads, larger, larger, generator=generator)
    return torch.linalg.qr(gaussian).Q[:, :dim, :count].contiguous()


METHOD = Method(
    name="rotate",
    ranks="codes",
    summary="signs of randomly rotated keys, not trained (RaBitQ, RaBitQCache)",
    paper="https://arxiv.org/abs/2606.31519",
    encoder=AsymmetricEncoder,
    recipe=RotateRecipe,
    trainer=RotateTrainer,
)
