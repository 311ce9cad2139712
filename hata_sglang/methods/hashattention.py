"""HashAttention (arXiv 2412.14468): 32 bits per query head, two MLPs each."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, silu

from hata_kernels.encoders import MlpEncoder
from hata_sglang.errors import HataError
from hata_sglang.methods.base import Method
from hata_sglang.methods.learning.layer_data import SequenceData, sample_batch
from hata_sglang.methods.learning.loss import take_step

BITS_PER_HEAD = 32


@dataclass(frozen=True)
class HashAttentionRecipe:
    """Everything that decides the weights, besides data and seed.

    Parameters
    ----------
    steps : int
    learning_rate : float
        Of Adam; 0.001 in the published code.
    schedule : {"constant", "cosine"}
        ``constant`` in the published code.
    layers : {1, 2, 3}
        Linear layers of an MLP, SiLU between them; 3 in the paper.
    hidden : int or None
        Their width. None stands for the head size, as in the paper (128 for 128).
    top_keys : int
        Keys with a positive label, per query and query head.
    sink, recent : int
        First and last keys that have no part in the labels and the loss.
    class_weight : float
        Weight of a positive label against a negative one. The published code
        uses 20; the paper weighs classes and leaves the number to its code.
    class_weight_per_key : float
        Added to it for every key of the sequence; 0 by default in the code.
    queries_per_step, keys_per_step : int
        Drawn anew each step. The published code takes 128 neighbouring queries
        and all keys; a uniform share of the keys has the same expected loss.

    Notes
    -----
    The published code can also normalise k, and q with k's statistics, by the
    sequence at hand (an environment variable, off by default). Codes would
    then change as a sequence grows, so it is not offered.
    """

    steps: int = 1000
    learning_rate: float = 0.001
    schedule: Literal["constant", "cosine"] = "constant"
    layers: Literal[1, 2, 3] = 3
    hidden: int | None = None
    top_keys: int = 32
    sink: int = 128
    recent: int = 128
    class_weight: float = 20.0
    class_weight_per_key: float = 0.0
    queries_per_step: int = 64
    keys_per_step: int = 2048

    def card_entry(self) -> dict[str, str | int | float]:
        """What the card of the weights records."""
        return {
            "steps": self.steps,
            "learning_rate": self.learning_rate,
            "optimizer": "Adam, betas 0.9 and 0.999",
            "schedule": "cosine to 0" if self.schedule == "cosine" else "constant",
            "loss": "weighted binary cross entropy on sigmoid(tanh code of q . tanh code of k)",
            "layers": self.layers,
            "hidden": "head size" if self.hidden is None else self.hidden,
            "top_keys": self.top_keys,
            "sink": self.sink,
            "recent": self.recent,
            "class_weight": self.class_weight,
            "class_weight_per_key": self.class_weight_per_key,
            "queries_per_step": self.queries_per_step,
            "keys_per_step": self.keys_per_step,
        }


class HashAttentionTrainer:
    """Trains the MLPs of all query heads at once.

    Parameters
    ----------
    data : list of SequenceData
        Captures, of one layer or of several with all their heads.
    bits : int
        32 times the query heads of a KV head.
    recipe : HashAttentionRecipe
    seed : int
        Same seed, data and machine, same weights.

    Raises
    ------
    HataError
        If no query has a key between sink and recent.
    """

    def __init__(
        self, data: list[SequenceData], bits: int, recipe: HashAttentionRecipe, seed: int
    ) -> None:
        self.data, self.recipe = data, recipe
        self.generator = torch.Generator().manual_seed(seed)
        self.kv_heads, _, self.group, self.dim = data[0].q.shape
        if bits != BITS_PER_HEAD * self.group:
            raise ValueError(f"bits: expected {BITS_PER_HEAD * self.group}, found {bits}")
        device = data[0].k.device
        hidden = recipe.hidden or self.dim
        sizes = [self.dim, *[hidden] * (recipe.layers - 1), BITS_PER_HEAD]
        # [Hkv, G, in, out] and [Hkv, G, 1, out] by side and layer, spread as nn.Linear's.
        self.layers = {
            side: [
                tuple(self._uniform(rows, size, out, device) for rows in (size, 1))
                for size, out in pairwise(sizes)
            ]
            for side in ("key", "query")
        }
        parameters = [p for side in self.layers.values() for layer in side for p in layer]
        self.optimizer = torch.optim.Adam(parameters, lr=recipe.learning_rate)
        self.schedule = None
        if recipe.schedule == "cosine":
            self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, recipe.steps)
        self.thresholds = [_thresholds(sequence, recipe) for sequence in data]

    def _uniform(self, rows: int, size: int, out: int, device: torch.device) -> torch.Tensor:
        shape = (self.kv_heads, self.group, rows, out)
        values = torch.rand(shape, generator=self.generator) * 2 - 1
        return (values * size**-0.5).to(device).requires_grad_()

    def _codes(self, side: str, x: torch.Tensor) -> torch.Tensor:
        """Relaxed codes ``[Hkv, G, T, 32]`` of rows ``[Hkv, 1 or G, T, D]``."""
        for place, (weight, bias) in enumerate(self.layers[side]):
            x = (silu(x) if place else x) @ weight + bias
        return torch.tanh(x)

    def step(self) -> torch.Tensor:
        """Take one step; returns its loss (a scalar tensor, so that nothing waits for a device)."""
        recipe = self.recipe
        batch = sample_batch(
            self.data, recipe.queries_per_step, recipe.keys_per_step, self.generator
        )
        q_codes = self._codes("query", batch.q.transpose(1, 2))
        k_codes = self._codes("key", batch.k[:, None])
        scores = q_codes @ k_codes.transpose(-1, -2)
        eligible = batch.eligible(recipe.sink, recipe.recent)
        # Labels look at all keys of the sequence, not at those drawn.
        top = self.thresholds[batch.sequence][:, batch.rows].transpose(1, 2)
        labels = (batch.logits.transpose(1, 2) >= top[..., None]) & eligible
        keys = self.data[batch.sequence].k.shape[1]
        weight = recipe.class_weight + recipe.class_weight_per_key * keys
        losses = binary_cross_entropy_with_logits(
            scores, labels.float(), reduction="none", pos_weight=scores.new_tensor(weight)
        )
        # A draw may hold no eligible key; its loss is 0 then, not 0 / 0.
        count = (eligible.sum() * self.kv_heads * self.group).clamp_min(1)
        loss = losses.masked_fill(~eligible, 0.0).sum() / count
        return take_step(loss, self.optimizer, self.schedule)

    def encoder(self) -> MlpEncoder:
        """The encoder as it is now, float32, with a copy of the weights."""
        tensors = {}
        for side, layers in self.layers.items():
            for n, (weight, bias) in enumerate(layers):
                tensors[f"{side}.{n}.weight"] = weight.detach().flatten(0, 1).clone()
                tensors[f"{side}.{n}.bias"] = bias.detach().flatten(0, 2).clone()
        return MlpEncoder(tensors, num_kv_heads=self.kv_heads, group=self.group, head_dim=self.dim)


def _thresholds(sequence: SequenceData, recipe: HashAttentionRecipe) -> torch.Tensor:
    """Scaled q.k of each query's last positive key, ``[Hkv, N, G]``; infinite where it has none."""
    tokens = torch.arange(sequence.k.shape[1], device=sequence.k.device)
    parts = []
    for start in range(0, sequence.q.shape[1], 64):  # bounds the [Hkv, n, G, S] scores in memory
        rows = slice(start, start + 64)
        last = sequence.positions[rows, None]
        eligible = (tokens >= recipe.sink) & (tokens <= last - recipe.recent)
        logits = torch.einsum("hngd,hsd->hngs", sequence.q[:, rows] * sequence.scale, sequence.k)
        logits.masked_fill_(~eligible[None, :, None], -torch.inf)
        best = logits.topk(min(recipe.top_keys, len(tokens)), dim=-1).values
        # With fewer eligible keys than labels, all of them are positive.
        lowest = best.masked_fill(best == -torch.inf, torch.inf).amin(-1)
        parts.append(lowest)
    found = torch.cat(parts, dim=1)
    if torch.isinf(found).all():
        raise HataError(
            f"training texts: expected queries with keys between the first {recipe.sink} and the "
            f"last {recipe.recent} tokens, found none in a sequence of {len(tokens)} tokens. Give "
            "longer texts, or lower --option sink=N and --option recent=N."
        )
    return found


METHOD = Method(
    name="hashattention",
    ranks="codes",
    summary="trained MLPs, a word of code for every query head (HashAttention)",
    paper="https://arxiv.org/abs/2412.14468",
    encoder=MlpEncoder,
    recipe=HashAttentionRecipe,
    trainer=HashAttentionTrainer,
    max_bits=1024,
    bits_per_query_head=BITS_PER_HEAD,
)
