"""Asymmetric codes: keys of one-bit numbers against one query vector per group of heads.

The maths, and what is new in it, is in docs/asymmetric.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from hata_kernels.encoders import AsymmetricEncoder
from hata_kernels.score.distance import DISTANCES, distance_bucket
from hata_sglang.methods.base import Method
from hata_sglang.methods.learning.layer_data import (
    SequenceData,
    TrainingBatch,
    sample_batch,
    scale_step,
)
from hata_sglang.methods.learning.loss import straight_through_sign, take_step

#: Upper threshold of the best two-bit quantiser of a Gaussian, in standard deviations (Max 1960).
TWO_BIT_THRESHOLD = 0.98
#: Keys that initial values are estimated from.
STATISTICS_KEYS = 32_768


@dataclass(frozen=True)
class AsymmetricRecipe:
    """Everything that decides the weights, besides data and seed.

    Parameters
    ----------
    steps : int
    learning_rate : float
        Of Adam; falls to 0 along a cosine.
    queries_per_step, keys_per_step : int
        Drawn anew each step.
    sink, recent : int
        First and last keys that the loss leaves out: serving keeps them anyway.
    stages : {1, 2}
        2: the second half of the bits are signs of what the first half left over.
    query_bits : int
        B, bits of the query when it is served; training sees real numbers.
    clip : float
        Range of the quantised query, in its root mean squares.
    scale_bits : {0, 8, 16}
        Bits of a scale per key, or 0 for none.
    """

    steps: int = 500
    learning_rate: float = 0.01
    queries_per_step: int = 64
    keys_per_step: int = 3072
    sink: int = 16
    recent: int = 16
    stages: Literal[1, 2] = 2
    query_bits: int = 4
    clip: float = 2.5
    scale_bits: Literal[0, 8, 16] = 0

    def card_entry(self) -> dict[str, str | int | float]:
        """What the card of the weights records."""
        return {
            "steps": self.steps,
            "learning_rate": self.learning_rate,
            "optimizer": "Adam, betas 0.9 and 0.99, cosine to 0",
            "loss": "cross entropy of softmax(real query . key signs + bias of the distance) with "
            "the group's attention",
            "gradient": "straight-through sign, derivative of tanh",
            "queries_per_step": self.queries_per_step,
            "keys_per_step": self.keys_per_step,
            "sink": self.sink,
            "recent": self.recent,
            "stages": self.stages,
        }


class AsymmetricTrainer:
    """Trains the projections of all KV heads at once.

    Parameters
    ----------
    data : list of SequenceData
        Captures, of one layer or of several with all their heads.
    bits : int
    recipe : AsymmetricRecipe
    seed : int
        Same seed, data and machine, same weights.
    """

    def __init__(
        self, data: list[SequenceData], bits: int, recipe: AsymmetricRecipe, seed: int
    ) -> None:
        self.data, self.recipe = data, recipe
        self.generator = torch.Generator().manual_seed(seed)
        self.kv_heads, _, self.group, self.dim = data[0].q.shape
        keys = torch.cat([d.k for d in data], dim=1)
        keys = keys[:, :: max(1, keys.shape[1] // STATISTICS_KEYS)]
        self.parameters = _initial_keys(keys, data, bits, recipe.stages, self.generator)
        self.parameters |= self._initial_queries(keys)
        # Trained in units of their own size, which is that of the head's logits.
        self.unit = self.parameters["query_weight"].square().mean((1, 2), keepdim=True).sqrt()
        for name in ("query_weight", "query_bias"):
            self.parameters[name] = self.parameters[name] / self.unit
        self.parameters["distance_bias"] = torch.zeros(
            self.kv_heads, 1, DISTANCES, device=keys.device
        )
        #: Keys that steps scored, by distance.
        self.scored = torch.zeros(DISTANCES, device=keys.device)
        for parameter in self.parameters.values():
            parameter.requires_grad_()
        self.log_temperature = torch.zeros(
            self.kv_heads, 1, 1, device=keys.device, requires_grad=True
        )
        rate = recipe.learning_rate
        of_keys, others = [], []
        for name, parameter in self.parameters.items():
            (of_keys if name.startswith(("key", "residual")) else others).append(parameter)
        self.optimizer = torch.optim.Adam(
            [
                {"params": [*of_keys, self.log_temperature], "lr": rate},
                {"params": others, "lr": 3 * rate},
            ],
            betas=(0.9, 0.99),
        )
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, recipe.steps)

    def _initial_queries(self, keys: torch.Tensor) -> dict[str, torch.Tensor]:
        """Query weights that give the best linear estimate of every head's q.k from the bits."""
        codes = self._codes(keys)
        bits = codes.shape[-1]
        count = codes.shape[1]
        gram = codes.transpose(1, 2) @ codes / count
        # Of centred keys: what all keys share does not rank them.
        cross = codes.transpose(1, 2) @ (keys - keys.mean(1, keepdim=True)) / count
        ridge = 0.05 * torch.eye(bits, device=keys.device)
        decoder = torch.linalg.solve(gram + ridge, cross)  # [Hkv, r, D]
        weight = decoder.transpose(1, 2).repeat(1, self.group, 1) * self.data[0].scale / self.group
        return {
            "query_weight": weight.contiguous(),
            "query_bias": torch.zeros(self.kv_heads, 1, bits, device=keys.device),
        }

    def _projections(self, keys: torch.Tensor) -> torch.Tensor:
        """Numbers ``[Hkv, s, r]`` whose signs are the code of ``keys [Hkv, s, D]``."""
        numbers = keys @ self.parameters["key_weight"] + self.parameters["key_bias"]
        if self.recipe.stages == 1:
            return numbers
        first, second = numbers.chunk(2, dim=-1)
        second = second + straight_through_sign(first) @ self.parameters["residual_weight"]
        return torch.cat([first, second], dim=-1)

    def _codes(self, keys: torch.Tensor) -> torch.Tensor:
        """Key signs ``[Hkv, s, r]``, times the key's scale where there is one."""
        numbers = self._projections(keys)
        codes = straight_through_sign(numbers)
        return codes * self._magnitude(numbers)[..., None] if self.recipe.scale_bits else codes

    def _magnitude(self, numbers: torch.Tensor) -> torch.Tensor:
        """What a key's scale stands for: the mean size of its first-stage projections."""
        return numbers.chunk(self.recipe.stages, dim=-1)[0].abs().mean(-1)

    def step(self) -> torch.Tensor:
        """Take one step; returns its loss (a scalar tensor, so that nothing waits for a device)."""
        recipe = self.recipe
        batch = sample_batch(
            self.data, recipe.queries_per_step, recipe.keys_per_step, self.generator
        )
        eligible = batch.eligible(recipe.sink, recipe.recent)
        query = batch.q.flatten(2) @ self.parameters["query_weight"]
        query = (query + self.parameters["query_bias"]) * self.unit
        scores = query @ self._codes(batch.k).transpose(1, 2) * self.log_temperature.exp()
        scores = scores + self._biases(batch, eligible)
        log_share = scores.masked_fill(~eligible, -torch.inf).log_softmax(-1)
        attention = batch.attention.masked_fill(~eligible, 0.0)
        # 0 * -inf is NaN: ineligible keys have no attention to explain.
        loss = -(attention * log_share.masked_fill(~eligible, 0.0)).sum((0, 2)).mean()
        return take_step(loss, self.optimizer, self.schedule)

    def _biases(self, batch: TrainingBatch, eligible: torch.Tensor) -> torch.Tensor:
        """Bias of each key by its distance from each query, ``[Hkv, n, s]``; counts `scored`."""
        distance = batch.query_positions[:, None] - batch.key_positions
        bucket = distance_bucket(distance.clamp_min(0))
        # A product with ones and zeros. The gradient of a gather would add up thousands of numbers
        # at one place, one after the other, or in another order each time.
        chosen = torch.arange(DISTANCES, device=bucket.device) == bucket[..., None]
        chosen = (chosen & eligible[..., None]).float().flatten(0, 1)  # [n * s, DISTANCES]
        self.scored += chosen.sum(0)
        return (self.parameters["distance_bias"][:, 0] @ chosen.T).unflatten(1, bucket.shape)

    def _distance_bias(self) -> torch.Tensor:
        """The bias as it is served: in the units of u . s, for all distances, at most 0."""
        bias = self.parameters["distance_bias"][:, 0] / self.log_temperature[:, 0].exp()
        # A key of every other step teaches nothing; the nearest half octave says more.
        learned = (self.scored >= max(1, self.schedule.last_epoch)).nonzero()[:, 0]
        if len(learned):
            every = torch.arange(DISTANCES, device=learned.device)
            bias = bias[:, learned[(every[:, None] - learned).abs().argmin(1)]]
        return bias - bias.amax(1, keepdim=True)

    @torch.no_grad()
    def encoder(self) -> AsymmetricEncoder:
        """The encoder as it is now, float32, with a copy of the weights."""
        tensors = {
            name: (p * self.unit if name.startswith("query") else p).detach().clone()
            for name, p in self.parameters.items()
        }
        tensors = {n: t[:, 0] if n.endswith("bias") else t for n, t in tensors.items()}
        tensors["distance_bias"] = self._distance_bias()
        if self.recipe.scale_bits:
            sizes = [self._magnitude(self._projections(d.k)) for d in self.data]
            tensors["scale_step"] = scale_step(torch.cat(sizes, dim=1), self.recipe.scale_bits)
        return AsymmetricEncoder(
            tensors,
            num_kv_heads=self.kv_heads,
            group=self.group,
            head_dim=self.dim,
            query_bits=self.recipe.query_bits,
            clip=self.recipe.clip,
            scale_bits=self.recipe.scale_bits,
            stages=self.recipe.stages,
        )


def _initial_keys(
    keys: torch.Tensor,
    data: list[SequenceData],
    bits: int,
    stages: int,
    generator: torch.Generator,
) -> dict[str, torch.Tensor]:
    """Key projections to start from; every projection has mean 0 and unit size.

    One stage: random hyperplanes. Two stages: the directions in which keys differ most as queries
    see them (the largest eigenvectors of the keys' covariance between square roots of the queries'
    second moment), randomly rotated so that all weigh the same, each cut into four levels.
    """
    kv_heads, _, dim = keys.shape
    mean = keys.mean(1, keepdim=True)
    centred = keys - mean
    covariance = centred.transpose(1, 2) @ centred / keys.shape[1]

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(kv_heads, *shape, generator=generator).to(keys.device)

    first = bits // stages
    if stages == 1:
        weight = draw(dim, first)
    else:
        queries = torch.cat([d.q.flatten(1, 2) for d in data], dim=1)
        moment = queries.transpose(1, 2) @ queries / queries.shape[1]
        values, vectors = torch.linalg.eigh(moment)
        root = vectors * values.clamp_min(0).sqrt()[:, None] @ vectors.transpose(1, 2)
        seen = torch.linalg.eigh(root @ covariance @ root).eigenvectors[..., -min(first, dim) :]
        # More bits than directions: a tight frame, the rows of a larger rotation.
        rotation = torch.linalg.qr(draw(first, first)).Q[:, : seen.shape[2]]
        weight = root @ seen @ rotation
    size = (weight * (covariance @ weight)).sum(1, keepdim=True).clamp_min(0).sqrt()
    weight = (weight / size.clamp_min(1e-6)).repeat(1, 1, stages)
    start = {"key_weight": weight, "key_bias": -(mean @ weight)}
    if stages == 2:
        identity = torch.eye(first, device=keys.device)
        start["residual_weight"] = -TWO_BIT_THRESHOLD * identity.repeat(kv_heads, 1, 1)
    return start


METHOD = Method(
    name="asymmetric",
    ranks="codes",
    summary="trained codes of keys against queries of a few bits (this package)",
    encoder=AsymmetricEncoder,
    recipe=AsymmetricRecipe,
    trainer=AsymmetricTrainer,
)
