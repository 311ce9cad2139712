"""Training a set of hash weights: capture, learn layer by layer, measure, save."""

from __future__ import annotations

import json
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from hata_sglang import __version__
from hata_sglang.demo_model import MANIFEST, file_sha256
from hata_sglang.errors import HataError, Problem, Refusal
from hata_sglang.evaluation.attention_mass import Budget
from hata_sglang.training.capture import Sampling
from hata_sglang.training.captures import ensure_captures
from hata_sglang.training.data import DataError, TokenSequence, read_sequences, total_tokens
from hata_sglang.training.held_out import HeldOutLayer
from hata_sglang.training.layer_data import SequenceData
from hata_sglang.training.methods import METHODS, LayerTrainer, Recipe, make_trainer
from hata_sglang.weights import Card, Fingerprint, HeldOut, TrainingData, save_weights


@dataclass(frozen=True)
class TrainOptions:
    """What `train` does besides the recipe of the method.

    Parameters
    ----------
    bits : int
        Per code, a multiple of 32.
    seed : int
    sequence_length, minimum_length : int
        Tokens of a training sequence, at most and at least.
    sampling : Sampling
        Which queries are captured.
    budgets : tuple of Budget
        For the held-out attention mass; the first decides which weights are kept.
    evaluate_every : int
        Steps between two looks at the held-out mass.
    patience : int
        Looks without a better mass after which a layer stops.
    held_out_queries : int
        Per held-out sequence.
    device : str
        ``cpu`` or ``cuda``.
    description : str
        Of the training texts, for the card.
    """

    bits: int = 128
    seed: int = 0
    sequence_length: int = 6144
    minimum_length: int = 2048
    sampling: Sampling = field(default_factory=Sampling)
    budgets: tuple[Budget, ...] = (Budget(256, 16, 64), Budget(96, 16, 16))
    evaluate_every: int = 100
    patience: int = 3
    held_out_queries: int = 48
    device: str = "cpu"
    description: str = "not described"


def train(
    model_dir: str | Path,
    data_files: Sequence[str | Path],
    held_out_files: Sequence[str | Path],
    out: str | Path,
    *,
    method: str = "hata",
    recipe: Recipe | None = None,
    options: TrainOptions | None = None,
    work_dir: str | Path | None = None,
    console: Console | None = None,
) -> Card:
    """Train hash weights of every layer of a model and write them with their card.

    Layers are trained one after the other, each with all its KV heads at once.
    One layer's captures are in memory at a time.

    Parameters
    ----------
    model_dir : path
        Hugging Face checkpoint of a causal language model.
    data_files, held_out_files : sequence of path
        Texts to learn from and to measure on (see `data.read_sequences`). They
        must differ; if `held_out_files` is empty, the last fifth of the
        training sequences is held out instead.
    out : path
        Folder of the weights; its name is the name of the set.
    method : str
        A key of `METHODS`.
    recipe : Recipe, optional
        Options of the method; default: those of its recipe class.
    options : TrainOptions, optional
    work_dir : path, optional
        Keeps the captures, and uses those of an earlier run with the same
        model, texts and seed. Default: a temporary folder, removed at the end.
    console : rich.console.Console, optional
        For progress; default: standard error.

    Returns
    -------
    Card

    Raises
    ------
    Refusal
        If the method or the number of bits is not valid.
    DataError
        If the texts cannot be used.
    HataError
        If the disk is too small, or a layer's weights are not finite.
    """
    options = options or TrainOptions()
    console = console or Console(stderr=True)
    if method not in METHODS:
        raise Refusal([Problem("method", f"one of {', '.join(METHODS)}", repr(method))])
    if options.bits < 32 or options.bits % 32:
        raise Refusal([Problem("bits", "a positive multiple of 32", str(options.bits))])
    recipe = recipe if recipe is not None else METHODS[method][0]()
    model_dir, out = Path(model_dir), Path(out)
    fingerprint = _fingerprint(model_dir)
    splits = _read_splits(model_dir, data_files, held_out_files, options)
    revision = model_revision(model_dir)
    with tempfile.TemporaryDirectory(prefix="hata-captures-") as temporary, _bars(console) as bars:
        tokens = sum(total_tokens(sequences) for sequences in splits.values())
        task = bars.add_task("capture q and k (tokens)", total=tokens, note="")
        stores = ensure_captures(
            Path(work_dir or temporary),
            model_dir,
            revision,
            splits,
            sampling=options.sampling,
            seed=options.seed,
            device=torch.device(options.device),
            advance=lambda done: bars.update(task, completed=done),
        )
        results = []
        layers = bars.add_task("layers", total=fingerprint.num_hidden_layers, note="")
        for layer in range(fingerprint.num_hidden_layers):
            captures = {
                split: [store.read(layer, index) for index in range(len(splits[split]))]
                for split, store in stores.items()
            }
            results.append(_train_layer(captures, layer, method, recipe, options, bars))
            bars.update(layers, advance=1, note=results[-1].summary(options.budgets[0]))
            line = f"layer {layer}: {results[-1].summary(options.budgets[0])}"
            bars.console.print(line, soft_wrap=True)
    kv_heads, dim = fingerprint.num_key_value_heads, fingerprint.head_dim
    card = Card(
        name=out.name,
        model=model_dir.resolve().name,
        fingerprint=fingerprint,
        revision=revision,
        method=method,
        bits=options.bits,
        layers=tuple(range(len(results))),
        shape=(kv_heads, dim, options.bits),
        training_data=_training_data(splits, data_files, held_out_files, options),
        seed=options.seed,
        recipe=recipe.card_entry() | {"steps_taken": sum(r.steps for r in results)},
        held_out=tuple(
            _held_out(budget, [r.masses[i] for r in results])
            for i, budget in enumerate(options.budgets)
        ),
        sha256="",
        created_by=_created_by(),
    )
    return save_weights(out, card, {i: r.weight for i, r in enumerate(results)})


@dataclass(frozen=True)
class LayerResult:
    """What training one layer gave: weights, last loss, steps, masses per budget."""

    weight: torch.Tensor
    loss: float
    steps: int
    masses: tuple[dict[str, float], ...]

    def summary(self, budget: Budget) -> str:
        """One line for people."""
        mass = ", ".join(f"{name} {value:.3f}" for name, value in self.masses[0].items())
        return f"loss {self.loss:.3f}, held-out mass at k = {budget.k}: {mass}"


def _train_layer(captures, layer, method, recipe, options: TrainOptions, bars) -> LayerResult:
    device = torch.device(options.device)
    data = [SequenceData.of(capture, device) for capture in captures["train"]]
    held_out = HeldOutLayer(captures["held_out"], options.held_out_queries, device)
    # One seed per layer, so that a layer's weights do not depend on the layers before it.
    trainer = make_trainer(method, data, options.bits, recipe, options.seed * 1_000_003 + layer)
    task = bars.add_task(f"  layer {layer} (steps)", total=recipe.steps, note="")
    best, best_mass, looks_since, loss, step = trainer.weight(), -1.0, 0, float("nan"), 0
    while step < recipe.steps and looks_since < options.patience:
        until = min(recipe.steps, step + options.evaluate_every)
        loss = _steps(trainer, until - step)
        step = until
        weight = trainer.weight()
        if not torch.isfinite(weight).all():
            raise HataError(
                f"layer {layer}: expected finite weights after step {step}, found NaN or infinite "
                "ones. Lower --learning-rate."
            )
        mass = held_out.mass(weight, options.budgets[0])
        looks_since += 1
        if mass > best_mass:
            best, best_mass, looks_since = weight, mass, 0
        bars.update(task, completed=step, note=f"loss {loss:.3f}, held-out mass {mass:.3f}")
    bars.remove_task(task)
    generator = torch.Generator().manual_seed(options.seed * 1_000_003 + layer)
    planes = torch.randn(best.shape, generator=generator).to(device)
    masses = tuple(
        {
            "exact": held_out.exact(budget),
            method: held_out.mass(best, budget),
            "random": held_out.mass(planes, budget),
            "streaming": held_out.streaming(budget),
        }
        for budget in options.budgets
    )
    return LayerResult(best.cpu(), loss, step, masses)


def _steps(trainer: LayerTrainer, count: int) -> float:
    """Mean loss of `count` steps."""
    return float(torch.stack([trainer.step() for _ in range(count)]).mean())


def _fingerprint(model_dir: Path) -> Fingerprint:
    from transformers import AutoConfig

    if not (model_dir / "config.json").is_file():
        raise Refusal([Problem("model", "a folder with a Hugging Face checkpoint", str(model_dir))])
    return Fingerprint.of(AutoConfig.from_pretrained(model_dir))


def _read_splits(model_dir, data_files, held_out_files, options: TrainOptions):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    length, minimum = options.sequence_length, options.minimum_length
    sequences = read_sequences(data_files, tokenizer, length, minimum)
    if held_out_files:
        held_out = read_sequences(held_out_files, tokenizer, length, minimum)
    else:
        count = max(1, len(sequences) // 5)
        sequences, held_out = sequences[:-count], sequences[-count:]
    shared = {s.tokens for s in sequences} & {s.tokens for s in held_out}
    if not sequences or shared:
        found = "the same text in both" if shared else "one sequence in all"
        raise DataError(
            "training texts: expected sequences to train on and others to hold out, "
            f"found {found}. Give more text or --held-out FILE."
        )
    return {"train": sequences, "held_out": held_out}


def model_revision(model_dir: Path) -> str:
    """Identify a checkpoint by the SHA-256 of what its weights were read from.

    Returns
    -------
    str
        ``gguf-sha256:...`` for the demo model, else ``weights-sha256:...`` over
        the weight files in the order of their names.
    """
    manifest = model_dir / MANIFEST
    if manifest.is_file():
        return "gguf-sha256:" + json.loads(manifest.read_text(encoding="utf-8"))["gguf_sha256"]
    files = sorted(model_dir.glob("*.safetensors")) or sorted(model_dir.glob("*.bin"))
    if not files:
        raise Refusal([Problem("model", "*.safetensors or *.bin", f"none in {model_dir}")])
    sums = [file_sha256(path) for path in files]
    return "weights-sha256:" + (sums[0] if len(sums) == 1 else "+".join(sums))


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    )


def _training_data(
    splits: dict[str, list[TokenSequence]], data_files, held_out_files, options: TrainOptions
) -> TrainingData:
    return TrainingData(
        description=options.description,
        files={Path(f).name: file_sha256(Path(f)) for f in data_files},
        sequences=len(splits["train"]),
        tokens=total_tokens(splits["train"]),
        held_out_files={Path(f).name: file_sha256(Path(f)) for f in held_out_files},
        held_out_sequences=len(splits["held_out"]),
        held_out_tokens=total_tokens(splits["held_out"]),
    )


def _held_out(budget: Budget, masses: list[dict[str, float]]) -> HeldOut:
    per_layer: dict[str, dict[int, float]] = {
        name: {layer: round(mass[name], 4) for layer, mass in enumerate(masses)}
        for name in masses[0]
    }
    mean = {name: round(sum(m[name] for m in masses) / len(masses), 4) for name in masses[0]}
    return HeldOut(
        budget=budget.k, sink=budget.sink, recent=budget.recent, mean=mean, per_layer=per_layer
    )


def _created_by() -> dict[str, Any]:
    import transformers

    return {
        "hata_sglang": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
