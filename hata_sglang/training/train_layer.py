"""Training one layer: steps, looks at the validation mass, the best weights, what they keep."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from rich.progress import Progress

from hata_kernels.encoders import Encoder
from hata_sglang.errors import HataError
from hata_sglang.methods import LayerTrainer, Recipe, methods, trainable
from hata_sglang.methods.learning.layer_data import SequenceData
from hata_sglang.training.attention_mass import TopK
from hata_sglang.training.capture import Capture
from hata_sglang.training.measured_layer import MeasuredLayer
from hata_sglang.training.options import TrainOptions


@dataclass(frozen=True)
class LayerResult:
    """What training one layer gave.

    Attributes
    ----------
    encoder : Encoder
        On the CPU, float32, rounded to the dtype of the weights' file.
    loss : float or None
        Mean of the last steps; None where the method takes none.
    steps : int
        Taken; the weights are those of the step whose validation mass was best.
    masses : tuple of dict of str to float
        By budget: selector -> held-out attention mass.
    seconds : float
        Wall time.
    """

    encoder: Encoder
    loss: float | None
    steps: int
    masses: tuple[dict[str, float], ...]
    seconds: float

    def summary(self, budget: TopK) -> str:
        """One line for people."""
        mass = ", ".join(f"{name} {value:.3f}" for name, value in self.masses[0].items())
        loss = "" if self.loss is None else f"loss {self.loss:.3f}, "
        return f"{loss}held-out mass at k = {budget.k}: {mass}"


def train_layer(
    captures: dict[str, list[Capture]],
    layer: int,
    method: str,
    bits: int,
    recipe: Recipe,
    options: TrainOptions,
    bars: Progress,
) -> LayerResult:
    """Train the encoder of one layer on its captures.

    Parameters
    ----------
    captures : dict of str to list of Capture
        ``train``, ``validation`` (chooses the step), ``held_out`` (measured once, at the end).
    layer : int
    method : str
        Name of one that can be trained.
    bits : int
        Per token and KV head.
    recipe : Recipe
    options : TrainOptions
    bars : rich.progress.Progress

    Raises
    ------
    HataError
        If the weights are not finite.
    """
    start = time.perf_counter()
    device = torch.device(options.device)
    data = [SequenceData.of(capture, device) for capture in captures["train"]]
    validation = MeasuredLayer(captures["validation"], options.measured_queries, device)
    # One seed per layer, so that a layer's weights do not depend on the layers before it.
    seed = options.seed * 1_000_003 + layer
    trainer = trainable(method).trainer(data, bits, recipe, seed)
    task = bars.add_task(f"  layer {layer} (steps)", total=recipe.steps, note="")
    best, best_mass, looks_since = _stored(trainer.encoder(), options.dtype), -1.0, 0
    _expect_finite(best, f"layer {layer}", "at the start", "Store them with --dtype float32")
    loss, step = None, 0
    while step < recipe.steps and looks_since < options.patience:
        until = min(recipe.steps, step + options.evaluate_every)
        loss = _steps(trainer, until - step)
        step = until
        encoder = _stored(trainer.encoder(), options.dtype)
        _expect_finite(encoder, f"layer {layer}", f"after step {step}", "Lower --learning-rate")
        mass = validation.mass(encoder, options.budgets[0])
        looks_since += 1
        if mass > best_mass:
            best, best_mass, looks_since = encoder, mass, 0
        bars.update(task, completed=step, note=f"loss {loss:.3f}, validation mass {mass:.3f}")
    bars.remove_task(task)
    # Only now: what the card reports must have chosen nothing.
    held_out = MeasuredLayer(captures["held_out"], options.measured_queries, device)
    sizes = {"num_kv_heads": best.num_kv_heads, "group": best.group, "head_dim": best.head_dim}
    planes = methods()["random"].untrained_encoder(best.bits, seed=seed, layer=0, **sizes)
    planes = planes.to(best.device, torch.float32)
    masses = tuple(
        {
            "exact": held_out.exact(budget),
            method: held_out.mass(best, budget),
            "random": held_out.mass(planes, budget),
            "streaming": held_out.streaming(budget),
        }
        for budget in options.budgets
    )
    best = best.to("cpu", torch.float32)
    return LayerResult(best, loss, step, masses, time.perf_counter() - start)


def _steps(trainer: LayerTrainer, count: int) -> float:
    """Mean loss of `count` steps."""
    return float(torch.stack([trainer.step() for _ in range(count)]).mean())


def _expect_finite(encoder: Encoder, layer: str, when: str, remedy: str) -> None:
    if not all(torch.isfinite(tensor).all() for tensor in encoder.tensors().values()):
        raise HataError(
            f"{layer}: expected finite weights {when}, found NaN or infinite ones. {remedy}."
        )


def remake(encoder: Encoder, tensors: dict[str, torch.Tensor]) -> Encoder:
    """An encoder like another one, of other tensors."""
    return type(encoder).from_tensors(
        tensors,
        num_kv_heads=encoder.num_kv_heads,
        group=encoder.group,
        head_dim=encoder.head_dim,
        **encoder.options(),
    )


def _stored(encoder: Encoder, dtype: str) -> Encoder:
    """The encoder as its file will give it back."""
    kept = getattr(torch, dtype)
    return remake(encoder, {n: t.to(kept).float() for n, t in encoder.tensors().items()})
