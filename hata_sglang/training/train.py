"""Training a set of hash weights: capture, learn layer by layer, measure, save."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import TextColumn, TimeElapsedColumn

from hata_sglang.errors import Refusal
from hata_sglang.files import model_revision
from hata_sglang.methods import Recipe, trainable
from hata_sglang.progress import bars as bars_on
from hata_sglang.training.architectures import plan_layers
from hata_sglang.training.capture import join
from hata_sglang.training.captures import (
    captures_digest,
    ensure_captures,
    group_layers,
    layer_bytes,
    together,
)
from hata_sglang.training.checkpoint import load_tokenizer, read_config
from hata_sglang.training.data import total_tokens
from hata_sglang.training.finished import FinishedLayers
from hata_sglang.training.options import TrainOptions
from hata_sglang.training.report import Cost, held_out_measures, training_data, versions
from hata_sglang.training.splits import SplitFiles, describe_splits, read_splits
from hata_sglang.training.train_layer import LayerResult, train_layers
from hata_sglang.weights import Card, Fingerprint, TrainingData, save_weights

__all__ = ["TrainOptions", "save_results", "train"]


def train(
    model_dir: str | Path,
    data_files: Sequence[str | Path],
    held_out_files: Sequence[str | Path],
    out: str | Path,
    *,
    validation_files: Sequence[str | Path] = (),
    method: str = "hata",
    recipe: Recipe | None = None,
    options: TrainOptions | None = None,
    work_dir: str | Path | None = None,
    console: Console | None = None,
) -> Card:
    """Train hash weights of every full-attention layer of a model and write them with their card.

    On a CPU layers are trained one after the other, on a GPU some together
    (`captures.together`). Their captures, or the model while it runs, decide
    the peak of the memory.

    Parameters
    ----------
    model_dir : path
        Hugging Face checkpoint of a causal language model (`architectures`).
    data_files, held_out_files, validation_files : sequence of path
        Texts to learn from, to report on, and to choose each layer's step by (see
        `data.read_sequences` and `splits.read_splits`). No text may be in two of
        them; where one of the latter is empty, a tenth of `data_files` stands in.
    out : path
        Folder of the weights; its name is the name of the set.
    method : str
        Name of one that can be trained.
    recipe : Recipe, optional
        Options of the method; default: those of its recipe class.
    options : TrainOptions, optional
    work_dir : path, optional
        Keeps captures, which runs with the same model, texts and seed share,
        and finished layers, with which a run that was cut off goes on.
        Default: a temporary folder, removed at the end.
    console : rich.console.Console, optional
        For progress; default: standard error.

    Returns
    -------
    Card

    Raises
    ------
    Refusal
        If the method, the number of bits, the model or the disk bound is not valid.
    DataError
        If the texts cannot be used.
    HataError
        If the disk is too small, or a layer's captures or weights are not finite.
    """
    options = options or TrainOptions()
    cost = Cost(options.device)
    trained = trainable(method)
    recipe = recipe if recipe is not None else trained.recipe()
    if not isinstance(recipe, trained.recipe):
        raise Refusal.of("recipe", trained.recipe.__name__, type(recipe).__name__)
    model_dir, out = Path(model_dir), Path(out)
    config = read_config(model_dir, options.sglang_arguments)
    plan, fingerprint = plan_layers(config), Fingerprint.of(config)
    bits = trained.resolve_bits(options.bits, fingerprint.shape.group)
    files = SplitFiles(train=data_files, validation=validation_files, held_out=held_out_files)
    tokenizer = load_tokenizer(model_dir, options.sglang_arguments)
    splits = read_splits(files, tokenizer, options, fingerprint.vocab_size)
    per_layer = layer_bytes(fingerprint, splits, options.sampling)
    max_bytes = None if options.max_disk_gb is None else options.max_disk_gb * 1e9
    groups = group_layers(plan.trained, per_layer, max_bytes)
    revision, device = model_revision(model_dir), torch.device(options.device)
    of_run = (options.sampling, options.seed, device, options.sglang_arguments)
    digest = captures_digest(revision, splits, *of_run)
    results: dict[int, LayerResult] = {}
    reused = 0
    console = console or Console(stderr=True)
    columns = (TimeElapsedColumn(), TextColumn("{task.fields[note]}"))
    with (
        tempfile.TemporaryDirectory(prefix="hata-captures-") as temporary,
        bars_on(console, *columns) as bars,
    ):
        folder = Path(work_dir or temporary)
        finished = FinishedLayers(
            folder / "layers", digest, method, bits, recipe, options, fingerprint
        )
        disk = per_layer * max(map(len, groups)) / 1e9
        runs = f"{len(groups)} run(s) of the model, captures of {disk:.2f} GB"
        bars.console.print(f"{plan.describe()}; {runs}", soft_wrap=True)
        bars.console.print(describe_splits(splits), soft_wrap=True)
        tokens = sum(map(total_tokens, splits.values()))
        layers = bars.add_task("layers", total=len(plan.trained), note="")
        size = together(device, per_layer)
        for members in groups:
            parts = [members[n : n + size] for n in range(0, len(members), size)]
            # Layers that are trained together need the captures of all of them.
            unfinished = [part for part in parts if any(layer not in finished for layer in part)]
            pending = [layer for part in unfinished for layer in part]
            reused += len(members) - len(pending)
            if pending:
                task = bars.add_task("capture (tokens)", total=tokens, note="")
                stores = ensure_captures(
                    folder,
                    model_dir,
                    digest,
                    splits,
                    pending,
                    bytes_per_layer=per_layer,
                    sampling=options.sampling,
                    seed=options.seed,
                    device=device,
                    arguments=options.sglang_arguments,
                    advance=lambda done, task=task: bars.update(task, completed=done),
                )
            for part in unfinished:
                captures = {
                    split: [
                        join([store.read(layer, index) for layer in part])
                        for index in range(len(splits[split]))
                    ]
                    for split, store in stores.items()
                }
                found = train_layers(captures, part, method, bits, recipe, options, bars)
                for layer, result in found.items():
                    finished.write(layer, result)
            for layer in members:
                results[layer] = finished.read(layer)
                line = results[layer].summary(options.budgets[0])
                bars.update(layers, advance=1, note=line)
                bars.console.print(f"layer {layer}: {line}", soft_wrap=True)
    made_for = {"model": model_dir.resolve().name, "fingerprint": fingerprint, "revision": revision}
    data = training_data(splits, files, options.description)
    spent = cost.entries(list(results.values()), reused)
    return save_results(out, method, recipe, options, results, data, spent, **made_for)


def save_results(
    out: Path,
    method: str,
    recipe: Recipe,
    options: TrainOptions,
    results: dict[int, LayerResult],
    data: TrainingData,
    spent: dict[str, str],
    **made_for: Any,
) -> Card:
    """Write a set of hash weights with its card.

    Parameters
    ----------
    out : Path
        Folder of the weights; its name is the name of the set.
    method : str
    recipe : Recipe
    options : TrainOptions
    results : dict of int to LayerResult
        By layer, rising.
    data : TrainingData
    spent : dict of str to str
        From `Cost.entries`.
    **made_for
        Fields ``model``, ``fingerprint`` and ``revision`` of the card.
    """
    encoders = {layer: result.encoder for layer, result in results.items()}
    encoder = next(iter(encoders.values()))
    card = Card(
        name=out.name,
        method=method,
        bits=encoder.bits,
        options=encoder.options(),
        layers=tuple(results),
        shapes={name: tuple(tensor.shape) for name, tensor in encoder.tensors().items()},
        training_data=data,
        seed=options.seed,
        recipe=recipe.card_entry() | {"steps_taken": sum(r.steps for r in results.values())},
        held_out=held_out_measures(options.budgets, results),
        left_out=True,
        sha256="",
        created_by=versions() | spent,
        **made_for,
    )
    left_out = {layer: result.left_out for layer, result in results.items()}
    return save_weights(out, card, encoders, getattr(torch, options.dtype), left_out)
