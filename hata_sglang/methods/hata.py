"""HATA (arXiv 2506.02572): a linear hash, one W per KV head, symmetric sign codes."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

import torch

from hata_kernels.encoders import LinearEncoder
from hata_sglang.methods.base import Method
from hata_sglang.methods.learning.layer_data import SequenceData, sample_batch, scale_step
from hata_sglang.methods.learning.loss import (
    PaperLoss,
    attention_loss,
    paper_loss,
    similarity_labels,
    take_step,
)

Objective = Literal["attention", "paper"]
Schedule = Literal["constant", "cosine"]
LossWeights = Literal["paper", "code"]


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
        None stands for 0.01 (attention) or 0.1 (paper).
    schedule : {"constant", "cosine"} or None
        ``cosine``: the rate falls to 0. None stands for ``cosine`` under
        ``attention`` and ``constant`` under ``paper``, as in the published code,
        whose schedule is built and never stepped.
    queries_per_step, keys_per_step : int
        Drawn anew each step.
    sink, recent : int
        First and last keys that ``attention`` leaves out: serving keeps them anyway.
    scale_bits : {0, 8, 16}
        0, the paper: scores are agreements alone. 8 or 16, the published code:
        agreements are multiplied by the key's norm, kept in that many bits per
        key. Under ``attention`` training sees the norm too.
    loss_weights : {"paper", "code"}
        Under ``paper``: the published code hands the weight of the balance
        term to the decorrelation term and the other way round.
    paper : PaperLoss
        Constants of the paper's loss.
    momentum, weight_decay : float
        Of SGD, under ``paper``.

    Notes
    -----
    The paper speaks of one W per attention head; its code keeps one per KV
    head. There is no option for the first: a key has one code per KV head, so
    the query heads that share it must share its W.
    """

    objective: Objective = "attention"
    steps: int = 400
    learning_rate: float | None = None
    schedule: Schedule | None = None
    queries_per_step: int = 64
    keys_per_step: int = 2048
    sink: int = 16
    recent: int = 16
    scale_bits: Literal[0, 8, 16] = 0
    loss_weights: LossWeights = "paper"
    paper: PaperLoss = field(default_factory=PaperLoss)
    momentum: float = 0.9
    weight_decay: float = 1e-6

    @property
    def rate(self) -> float:
        """The learning rate, with None resolved."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 0.01 if self.objective == "attention" else 0.1

    @property
    def falling(self) -> bool:
        """Whether the rate falls along a cosine, with None resolved."""
        return (
            self.schedule or ("cosine" if self.objective == "attention" else "constant")
        ) == "cosine"

    @property
    def constants(self) -> PaperLoss:
        """Constants of the paper's loss as used, after `loss_weights`."""
        if self.loss_weights == "paper":
            return self.paper
        return replace(
            self.paper, balance=self.paper.decorrelation, decorrelation=self.paper.balance
        )

    def card_entry(self) -> dict[str, str | int | float]:
        """What the card of the weights records, with the variants taken named."""
        common = {
            "objective": self.objective,
            "steps": self.steps,
            "learning_rate": self.rate,
            "schedule": "cosine to 0" if self.falling else "constant",
            "queries_per_step": self.queries_per_step,
            "keys_per_step": self.keys_per_step,
            "weights_per": "KV head (as the published code; the paper says attention head)",
            "scale_bits": self.scale_bits,
        }
        if self.objective == "attention":
            return common | {
                "optimizer": "Adam, betas 0.9 and 0.99",
                "loss": "cross entropy of softmax(code scores) with the group's attention",
                "gradient": "straight-through sign, derivative of tanh",
                "sink": self.sink,
                "recent": self.recent,
            }
        return common | {
            "optimizer": f"SGD, momentum {self.momentum}, weight decay {self.weight_decay}",
            "loss": "the paper's; means over keys and balance / r^2 as the published code",
            "loss_weights": self.loss_weights,
            **{f"paper_{name}": value for name, value in asdict(self.constants).items()},
        }


class HataTrainer:
    """Trains W of all KV heads at once.

    Parameters
    ----------
    data : list of SequenceData
        Captures, of one layer or of several with all their heads.
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
        self.group = data[0].q.shape[2]
        self.scale_step, self.mean_scale = None, None
        if recipe.scale_bits:
            norms = torch.cat([d.k.norm(dim=-1) for d in data], dim=1)
            self.scale_step = scale_step(norms, recipe.scale_bits)
            self.mean_scale = norms.mean(1, keepdim=True)
        if recipe.objective == "paper":
            self.weight = initial.requires_grad_()
            self.optimizer: torch.optim.Optimizer = torch.optim.SGD(
                [self.weight],
                lr=recipe.rate,
                momentum=recipe.momentum,
                weight_decay=recipe.weight_decay,
            )
        else:
            # Unit projections keep the straight-through gradient alive; signs do not see the scale.
            self.weight = (initial / _projection_size(data, initial)).requires_grad_()
            with torch.no_grad():
                sizes = [(d.q.flatten(1, 2) @ self.weight).pow(2).mean((1, 2)) for d in data]
                self.query_scale = torch.stack(sizes).mean(0).rsqrt()[:, None, None]
            self.log_temperature = torch.full(
                (kv_heads, 1, 1), math.log(10.0), device=device, requires_grad=True
            )
            groups = [
                {"params": [self.weight], "lr": recipe.rate},
                {"params": [self.log_temperature], "lr": 3 * recipe.rate},
            ]
            self.optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
        self.schedule = None
        if recipe.falling:
            self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, recipe.steps)

    def step(self) -> torch.Tensor:
        """Take one step; returns its loss (a scalar tensor, so that nothing waits for a device)."""
        recipe = self.recipe
        batch = sample_batch(
            self.data, recipe.queries_per_step, recipe.keys_per_step, self.generator
        )
        if recipe.objective == "paper":
            visible = batch.visible[None, :, None].expand_as(batch.logits)
            labels = similarity_labels(batch.logits, visible, recipe.constants)
            loss = paper_loss(batch.q, batch.k, labels, self.weight, recipe.constants)
        else:
            eligible = batch.eligible(recipe.sink, recipe.recent)
            key_scale = None
            if self.mean_scale is not None:
                key_scale = batch.k.norm(dim=-1) / self.mean_scale
            loss = attention_loss(
                batch.q,
                batch.k,
                batch.attention.masked_fill(~eligible, 0.0),
                eligible,
                self.weight,
                self.query_scale,
                self.log_temperature,
                key_scale,
            )
        return take_step(loss, self.optimizer, self.schedule)

    def encoder(self) -> LinearEncoder:
        """The encoder as it is now, float32, with a copy of the weights."""
        tensors = {"weight": self.weight.detach().clone()}
        if self.scale_step is not None:
            tensors["scale_step"] = self.scale_step
        kv_heads, dim, _ = self.weight.shape
        return LinearEncoder(
            tensors,
            num_kv_heads=kv_heads,
            group=self.group,
            head_dim=dim,
            scale_bits=self.recipe.scale_bits,
        )


def _projection_size(data: list[SequenceData], weight: torch.Tensor) -> torch.Tensor:
    """Root mean square of every projection of the keys, ``[Hkv, 1, r]``."""
    means = [(d.k @ weight).pow(2).mean(1, keepdim=True) for d in data]
    return torch.stack(means).mean(0).sqrt().clamp_min(1e-6)


METHOD = Method(
    name="hata",
    ranks="codes",
    summary="one trained hash for keys and queries (HATA)",
    paper="https://arxiv.org/abs/2506.02572",
    encoder=LinearEncoder,
    recipe=HataRecipe,
    trainer=HataTrainer,
)
