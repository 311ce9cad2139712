"""From the names of a command line to selectors: comparisons by name, trained weights by set."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hata_kernels.encoders import Encoder, dense_scores
from hata_sglang.config.layer_ranges import format_layers
from hata_sglang.errors import Problem, Refusal, refuse_any
from hata_sglang.evaluation.selectors import (
    AttentionCase,
    KeyStatistics,
    Selector,
    exact,
    exact_per_head,
    loki,
    quest,
    streaming,
)
from hata_sglang.files import file_sha256
from hata_sglang.methods import choice, method_names, methods
from hata_sglang.weights import Fingerprint, HashWeights, check_against_model, load_weights

PLAIN = {"exact": exact, "exact_per_head": exact_per_head, "streaming": streaming}
DEFAULT = ("exact", "exact_per_head", "quest16", "quest32", "loki32", "streaming", "random")
VALUE_BITS = 16  # of a number in a KV cache, and so in Quest's summaries and Loki's channels

_SIZED = re.compile(r"(quest|loki)([1-9]\d{0,3})", re.ASCII)


def selector_name(text: str) -> str:
    """Check one name of ``--selectors``.

    Raises
    ------
    argparse.ArgumentTypeError
        If no selector has it.
    """
    untrained = method_names(coded=True, trained=False)
    if text in (*PLAIN, *untrained) or _SIZED.fullmatch(text):
        return text
    names = [*PLAIN, *untrained, "quest16 (or another page)", "loki32 (or other channels)"]
    raise ArgumentTypeError(f"expected {choice(names)}, found {text!r}")


def loki_channels(names: Sequence[str]) -> list[int]:
    """Channels of every Loki among names."""
    sized = filter(None, map(_SIZED.fullmatch, names))
    return [int(match[2]) for match in sized if match[1] == "loki"]


def load_sets(
    refs: Sequence[str], hf_config: Any, layers: Sequence[int], data: Sequence[Path]
) -> list[HashWeights]:
    """Load trained weights and make sure that what they are measured on means something.

    Parameters
    ----------
    refs : sequence of str
        Folders or shipped names.
    hf_config : transformers.PretrainedConfig
        Of the model to measure on.
    layers : sequence of int
        That are measured.
    data : sequence of Path
        Files that are measured on.

    Returns
    -------
    list of HashWeights

    Raises
    ------
    Refusal
        With every set that is missing, of another model or without one of the layers, has the
        name of another, or was trained or chosen on one of the files.
    """
    sets: list[HashWeights] = []
    problems: list[Problem] = []
    sums = {file_sha256(path): path for path in data}
    for ref in refs:
        try:
            weights = load_weights(ref)
        except Refusal as refusal:
            problems += refusal.problems
            continue
        card = weights.card
        problems += check_against_model(weights, hf_config)
        missing = [layer for layer in layers if layer not in weights.layers]
        if missing:
            found = f"none in {card.name}; give --layers {format_layers(card.layers)}"
            setting = f"--weights, layers {format_layers(missing)}"
            problems.append(Problem(setting, "trained weights", found))
        problems += [
            Problem(
                "--data",
                f"texts that {card.name} was not trained on, nor its step chosen on",
                str(sums[seen]),
            )
            for seen in card.training_data.deciding_files.values()
            if seen in sums
        ]
        if card.name in (other.card.name for other in sets):
            found = f"{card.name} twice; the name of a set is in its {ref}/card.json"
            problems.append(Problem("--weights", "sets with different names", found))
        sets.append(weights)
    refuse_any(problems)
    return sets


def make_selectors(
    names: Sequence[str],
    sets: Sequence[HashWeights],
    model: Fingerprint,
    layers: Sequence[int],
    *,
    untrained_bits: Sequence[int],
    seed: int,
    statistics: KeyStatistics,
    device: torch.device,
) -> list[Selector]:
    """Make the selectors of a comparison.

    Parameters
    ----------
    names : sequence of str
        Checked by `selector_name`.
    sets : sequence of HashWeights
        From `load_sets`.
    model : Fingerprint
    layers : sequence of int
    untrained_bits : sequence of int
        Of methods without training, such as ``random``: one selector each.
    seed : int
        Of their weights, which are those of a server with this seed.
    statistics : KeyStatistics
        Of the calibration texts; needed for Loki alone.
    device : torch.device

    Returns
    -------
    list of Selector
        In the order of `names`, then of `sets`. A set that weighs the mean of the values left out
        gives three: its codes without it and with it, and exact top-k with it.
    """
    dim = model.head_dim
    found = []
    for name in names:
        sized = _SIZED.fullmatch(name)
        if name in PLAIN:
            found.append(Selector(name, name, "", PLAIN[name]))
        elif sized is None:
            method, sizes = methods()[name], model.shape.sizes
            for bits in untrained_bits:
                made = {
                    layer: method.untrained_encoder(bits, seed=seed, layer=layer, **sizes)
                    for layer in layers
                }
                found.append(coded(name, name, made, device))
        elif sized[1] == "quest":
            page = int(sized[2])
            bits = f"{2 * VALUE_BITS * dim / page:g}"
            found.append(Selector(name, "quest", bits, partial(quest, page=page)))
        else:
            found.append(_loki(name, int(sized[2]), layers, statistics, device))
    for weights in sets:
        encoders = {layer: weights.encoder(layer) for layer in layers}
        own = coded(weights.card.name, weights.card.method, encoders, device)
        found.append(own)
        if weights.left_out:
            found.append(_with_mean(own, own.name, weights, layers, device))
            best = Selector("exact", "exact", "", exact)
            found.append(_with_mean(best, f"exact ({own.name})", weights, layers, device))
    return found


def _with_mean(
    selector: Selector,
    name: str,
    weights: HashWeights,
    layers: Sequence[int],
    device: torch.device,
) -> Selector:
    """The same selections, whose output has the mean of the values left out as a set weighs it."""
    left_out = {layer: weights.left_out[layer].to(device) for layer in layers}
    return replace(selector, name=f"{name} + mean", left_out=left_out, weights=weights.card.name)


def coded(name: str, method: str, encoders: dict[int, Encoder], device: torch.device) -> Selector:
    """Make the selector of codes, by the integers that serving ranks by.

    Parameters
    ----------
    name, method : str
    encoders : dict of int to hata_kernels.encoders.Encoder
        By layer, all with as many bits.
    device : torch.device
    """
    here = {layer: encoder.to(device, torch.float32) for layer, encoder in encoders.items()}
    any_encoder = next(iter(here.values()))

    def scores(case: AttentionCase) -> torch.Tensor:
        return dense_scores(here[case.layer], case.q, case.k, case.positions)

    return Selector(name, method, str(8 * any_encoder.code_bytes), scores)


def _loki(
    name: str,
    channels: int,
    layers: Sequence[int],
    statistics: KeyStatistics,
    device: torch.device,
) -> Selector:
    bases = {layer: statistics.basis(layer, channels).to(device) for layer in layers}

    def scores(case: AttentionCase) -> torch.Tensor:
        return loki(case, bases[case.layer])

    return Selector(name, "loki", str(VALUE_BITS * channels), scores)
