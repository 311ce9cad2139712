"""Training some layers at a time: steps, looks at the validation mass, the best weights of each.

Layers of a model are alike, so several are trained as if they were one with all their heads: on a
GPU, whose time goes into launches, this takes little longer than one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from rich.progress import Progress

from hata_kernels.encoders import Encoder
from hata_sglang.config.layer_ranges import format_layers
from hata_sglang.errors import HataError
from hata_sglang.methods import LayerTrainer, Recipe, methods, trainable
from hata_sglang.methods.learning.layer_data import SequenceData
from hata_sglang.training.attention_mass import TopK
from hata_sglang.training.capture import Capture
from hata_sglang.training.measured_layer import MeasuredLayers
from hata_sglang.training.options import TrainOptions


@dataclass(frozen=True)
class LayerResult:
    """What training one layer gave.

    Attributes
    ----------
    encoder : Encoder
        On the CPU, float32, rounded to the dtype of the weights' file.
    loss : float or None
        Mean of the last steps, and of the layers trained together; None where no step is taken.
    steps : int
        Taken; the weights are those of the step whose validation mass was best.
    masses : tuple of dict of str to float
        By budget: selector -> held-out attention mass.
    left_out : torch.Tensor
        float32 ``[Hq, RATIOS]`` on the CPU: what the mean of the values left out weighs
        (`hata_kernels.attend.left_out`), measured on the validation texts.
    output_errors : tuple of dict of str to float
        By budget: selector -> held-out relative error of attention's output.
    seconds : float
        Wall time, its share of that of the layers trained together.
    """

    encoder: Encoder
    loss: float | None
    steps: int
    masses: tuple[dict[str, float], ...]
    left_out: torch.Tensor
    output_errors: tuple[dict[str, float], ...]
    seconds: float

    def summary(self, budget: TopK) -> str:
        """One line for people."""
        mass = ", ".join(f"{name} {value:.3f}" for name, value in self.masses[0].items())
        loss = "" if self.loss is None else f"loss {self.loss:.3f}, "
        error = ", ".join(f"{name} {value:.3f}" for name, value in self.output_errors[0].items())
        return f"{loss}held-out mass at k = {budget.k}: {mass}; error of the output: {error}"


def train_layers(
    captures: dict[str, list[Capture]],
    layers: Sequence[int],
    method: str,
    bits: int,
    recipe: Recipe,
    options: TrainOptions,
    bars: Progress,
) -> dict[int, LayerResult]:
    """Train the encoders of some layers on their captures.

    Parameters
    ----------
    captures : dict of str to list of Capture
        ``train``, ``validation`` (chooses each layer's step, and what the mean of the values left
        out weighs), ``held_out`` (measured once, at the end); each with the heads of all these
        layers (`capture.join`), the latter two with values.
    layers : sequence of int
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
    validation = MeasuredLayers(captures["validation"], len(layers), options, device)
    # One seed per group, so that its weights do not depend on the layers before it.
    seed = options.seed * 1_000_003 + layers[0]
    trainer = trainable(method).trainer(data, bits, recipe, seed)
    names = format_layers(layers)
    task = bars.add_task(f"  layers {names} (steps)", total=recipe.steps, note="")
    first = _stored(trainer.encoder(), options.dtype)
    _expect_finite(first, f"layer {names}", "at the start", "Store them with --dtype float32")
    best = {layer: _Best(_of_layer(first, n, len(layers))) for n, layer in enumerate(layers)}
    loss, step = None, 0
    while step < recipe.steps and any(own.looks < options.patience for own in best.values()):
        until = min(recipe.steps, step + options.evaluate_every)
        loss = _steps(trainer, until - step) / len(layers)
        step = until
        encoder = _stored(trainer.encoder(), options.dtype)
        _expect_finite(encoder, f"layer {names}", f"after step {step}", "Lower --learning-rate")
        masses = validation.mass(encoder, options.budgets[0])
        for number, (own, mass) in enumerate(zip(best.values(), masses, strict=True)):
            if own.looks < options.patience:
                own.look(mass, step, lambda n=number, e=encoder: _of_layer(e, n, len(layers)))
        note = f"loss {loss:.3f}, validation mass {sum(masses) / len(masses):.3f}"
        bars.update(task, completed=step, note=note)
    bars.remove_task(task)
    trained = joined([own.encoder for own in best.values()])
    left_out = validation.left_out_weights(trained, options.budgets[0])
    masses, errors = _measure(captures["held_out"], trained, left_out, method, seed, options)
    seconds = (time.perf_counter() - start) / len(layers)
    return {
        layer: LayerResult(
            encoder=own.encoder.to("cpu", torch.float32),
            loss=loss,
            steps=own.steps,
            masses=masses[number],
            left_out=left_out[number].cpu(),
            output_errors=errors[number],
            seconds=seconds,
        )
        for number, (layer, own) in enumerate(best.items())
    }


@dataclass
class _Best:
    """The weights of a layer that were best so far.

    Attributes
    ----------
    encoder : Encoder
    mass : float
        On the validation texts.
    steps : int
        Taken while the layer could get better.
    looks : int
        Since it did.
    """

    encoder: Encoder
    mass: float = -1.0
    steps: int = 0
    looks: int = 0

    def look(self, mass: float, step: int, encoder: Callable[[], Encoder]) -> None:
        """Take note of the mass at a step."""
        self.steps = step
        self.looks += 1
        if mass > self.mass:
            self.encoder, self.mass, self.looks = encoder(), mass, 0


def _measure(
    captures: list[Capture],
    trained: Encoder,
    left_out: torch.Tensor,
    method: str,
    seed: int,
    options: TrainOptions,
) -> tuple[list[tuple[dict[str, float], ...]], ...]:
    """Held-out masses, and errors of the output, of each layer: by budget, selector -> number."""
    # Only now: what the card reports must have chosen nothing.
    layers = len(left_out)
    held_out = MeasuredLayers(captures, layers, options, torch.device(options.device))
    sizes = {name: getattr(trained, name) for name in ("num_kv_heads", "group", "head_dim")}
    planes = methods()["random"].untrained_encoder(trained.bits, seed=seed, layer=0, **sizes)
    planes = planes.to(trained.device, torch.float32)
    masses = [
        {
            "exact": held_out.exact(budget),
            method: held_out.mass(trained, budget),
            "random": held_out.mass(planes, budget),
            "streaming": held_out.streaming(budget),
        }
        for budget in options.budgets
    ]
    names = {"exact": "exact", "codes": method, "with mean": f"{method} + mean"}
    errors = [
        {
            names[selector]: of_layers
            for selector, of_layers in held_out.output_errors(trained, budget, left_out).items()
        }
        for budget in options.budgets
    ]
    return _by_layer(masses, layers), _by_layer(errors, layers)


def _by_layer(
    by_budget: list[dict[str, list[float]]], layers: int
) -> list[tuple[dict[str, float], ...]]:
    return [
        tuple({name: numbers[n] for name, numbers in each.items()} for each in by_budget)
        for n in range(layers)
    ]


def joined(encoders: Sequence[Encoder]) -> Encoder:
    """Encoders of several layers as one of a layer with all their heads."""
    tensors = [encoder.tensors() for encoder in encoders]
    together = {name: torch.cat([own[name] for own in tensors]) for name in tensors[0]}
    return remake(encoders[0], together, num_kv_heads=encoders[0].num_kv_heads * len(encoders))


def _steps(trainer: LayerTrainer, count: int) -> float:
    """Mean loss of `count` steps."""
    return float(torch.stack([trainer.step() for _ in range(count)]).mean())


def _expect_finite(encoder: Encoder, layers: str, when: str, remedy: str) -> None:
    if not all(torch.isfinite(tensor).all() for tensor in encoder.tensors().values()):
        raise HataError(
            f"{layers}: expected finite weights {when}, found NaN or infinite ones. {remedy}."
        )


def remake(
    encoder: Encoder, tensors: dict[str, torch.Tensor], num_kv_heads: int | None = None
) -> Encoder:
    """An encoder like another one, of other tensors and, where given, of other heads."""
    return type(encoder).from_tensors(
        tensors,
        num_kv_heads=num_kv_heads or encoder.num_kv_heads,
        group=encoder.group,
        head_dim=encoder.head_dim,
        **encoder.options(),
    )


def _of_layer(encoder: Encoder, number: int, count: int) -> Encoder:
    """The encoder of one of `count` layers that were trained together; a copy."""
    heads = encoder.num_kv_heads // count
    own = encoder.shard(range(number * heads, (number + 1) * heads))
    return remake(own, {name: tensor.clone() for name, tensor in own.tensors().items()})


def _stored(encoder: Encoder, dtype: str) -> Encoder:
    """The encoder as its file will give it back."""
    kept = getattr(torch, dtype)
    return remake(encoder, {n: t.to(kept).float() for n, t in encoder.tensors().items()})
