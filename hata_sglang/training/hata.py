"""Training the linear hash of HATA (arXiv 2506.02572): one W per KV head, symmetric sign codes."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Literal

import torch

from hata_sglang.training.layer_data import SequenceData, sample_batch
from hata_sglang.training.loss import PaperLoss, attention_loss, paper_loss, similarity_labels

Objective = Literal["attention", "paper"]


@dataclass(frozen=True)
class HataRecipe:
    """Everything that decides the weights, besides data and seed.

    Parameters
    ----------
    objective : {"attention", "paper"}
        ``paper``: HATA's labels and loss, SGD with momentum. ``attention``:
        cross entropy with the group's true attention, Adam; ranks better.
    steps : int
    learning_rate : float or None
        None stands for 0.01 (attention) or 0.1 (paper). Under ``attention`` it
        falls to 0 along a cosine; under ``paper`` it stays, as in the
        published code, whose schedule is built and never stepped.
    queries_per_step, keys_per_step : int
        Drawn anew each step.
    sink, recent : int
        First and last keys that ``attention`` leaves out: serving keeps them anyway.
    paper : PaperLoss
        Constants of the paper's loss.
    momentum, weight_decay : float
        Of SGD, under ``paper``.
    """

    objective: Objective = "attention"
    steps: int = 400
    learning_rate: float | None = None
    queries_per_step: int = 64
    keys_per_step: int = 2048
    sink: int = 16
    recent: int = 16
    paper: PaperLoss = field(default_factory=PaperLoss)
    momentum: float = 0.9
    weight_decay: float = 1e-6

    def card_entry(self) -> dict[str, str | int | float]:
        """What the card of the weights records, with the variants taken named."""
        common = {
            "objective": self.objective,
            "steps": self.steps,
            "learning_rate": _learning_rate(self),
            "queries_per_step": self.queries_per_step,
            "keys_per_step": self.keys_per_step,
            "weights_per": "KV head (as the published code; the paper says attention head)",
            "key_norm": "not used (as the paper; the published code multiplies by it)",
        }
        if self.objective == "attention":
            return common | {
                "optimizer": "Adam, betas 0.9 and 0.99, cosine to 0",
                "loss": "cross entropy of softmax(code scores) with the group's attention",
                "gradient": "straight-through sign, derivative of tanh",
                "sink": self.sink,
                "recent": self.recent,
            }
        return common | {
            "optimizer": f"SGD, momentum {self.momentum}, weight decay {self.weight_decay}",
            "loss": "the paper's; means over keys and balance / r^2 as the published code",
            "schedule": "none (the published code never steps its own)",
            **{f"paper_{name}": value for name, value in asdict(self.paper).items()},
        }


def _learning_rate(recipe: HataRecipe) -> float:
    if recipe.learning_rate is not None:
        return recipe.learning_rate
    return 0.01 if recipe.objective == "attention" else 0.1


class HataTrainer:
    """Trains W of one layer, all KV heads at once.

    Parameters
    ----------
    data : list of SequenceData
        Captures of the layer.
    bits : int
    recipe : HataRecipe
    seed : int
        Same seed, data and machine, same weights.
    """

    def __init__(self, data: list[SequenceData], bits: int, recipe: HataRecipe, seed: int) -> None:
        self.data, self.recipe = data, recipe
        self.generator = torch.Generator().manual_seed(seed)
        kv_heads, _, _, dim = data[0].q.shape
        device = data[0].k.device
        initial = torch.randn(kv_heads, dim, bits, generator=self.generator).to(device)
        rate = _learning_rate(recipe)
        if recipe.objective == "paper":
            self.weight_parameter = initial.requires_grad_()
            self.optimizer: torch.optim.Optimizer = torch.optim.SGD(
                [self.weight_parameter],
                lr=rate,
                momentum=recipe.momentum,
                weight_decay=recipe.weight_decay,
            )
            self.schedule = None
            return
        # Unit projections keep the straight-through gradient alive; signs do not see the scale.
        self.weight_parameter = (initial / _projection_size(data, initial)).requires_grad_()
        with torch.no_grad():
            sizes = [(d.q.flatten(1, 2) @ self.weight_parameter).pow(2).mean() for d in data]
            self.query_scale = torch.stack(sizes).mean().rsqrt()
        self.log_temperature = torch.full(
            (kv_heads, 1, 1), math.log(10.0), device=device, requires_grad=True
        )
        groups = [
            {"params": [self.weight_parameter], "lr": rate},
            {"params": [self.log_temperature], "lr": 3 * rate},
        ]
        self.optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, recipe.steps)

    def step(self) -> torch.Tensor:
        """Take one step; returns its loss (a scalar tensor, so that nothing waits for a device)."""
        recipe = self.recipe
        batch = sample_batch(
            self.data, recipe.queries_per_step, recipe.keys_per_step, self.generator
        )
        if recipe.objective == "paper":
            visible = batch.visible[None, :, None].expand_as(batch.logits)
            labels = similarity_labels(batch.logits, visible, recipe.paper)
            loss = paper_loss(batch.q, batch.k, labels, self.weight_parameter, recipe.paper)
        else:
            last = batch.query_positions[:, None]
            eligible = (batch.key_positions >= recipe.sink) & (
                batch.key_positions <= last - recipe.recent
            )
            loss = attention_loss(
                batch.q,
                batch.k,
                batch.attention.masked_fill(~eligible, 0.0),
                eligible,
                self.weight_parameter,
                self.query_scale,
                self.log_temperature,
            )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()
        return loss.detach()

    def weight(self) -> torch.Tensor:
        """The weights as they are now, ``[Hkv, D, r]`` float32, a copy."""
        return self.weight_parameter.detach().clone()


def _projection_size(data: list[SequenceData], weight: torch.Tensor) -> torch.Tensor:
    """Root mean square of every projection of the keys, ``[Hkv, 1, r]``."""
    means = [(d.k @ weight).pow(2).mean(1, keepdim=True) for d in data]
    return torch.stack(means).mean(0).sqrt().clamp_min(1e-6)
