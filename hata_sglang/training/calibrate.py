"""A set of hash weights from live traffic, compared with the set that the server has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import TextColumn, TimeElapsedColumn

from hata_kernels.encoders import Encoder
from hata_sglang.errors import HataError
from hata_sglang.files import model_revision
from hata_sglang.methods import Recipe
from hata_sglang.progress import bars as bars_on
from hata_sglang.training import captures
from hata_sglang.training.capture import Capture, join
from hata_sglang.training.measured_layer import MeasuredLayers
from hata_sglang.training.options import TrainOptions
from hata_sglang.training.report import Cost, measured_data
from hata_sglang.training.splits import SPLITS, last_tenths
from hata_sglang.training.traffic import TrafficFolder
from hata_sglang.training.train import save_results
from hata_sglang.training.train_layer import LayerResult, joined, train_layers
from hata_sglang.weights import Card, HashWeights

#: Requests without which there is nothing to say: a tenth chooses the step, a tenth is held out.
LEAST_REQUESTS = 10


@dataclass(frozen=True)
class Calibrated:
    """What calibration made.

    Attributes
    ----------
    card : Card
        Of the new set.
    before, after : float
        Attention mass that the codes of the set that is served, and of the new one, keep on the
        held-out requests, at the first budget; means over the layers.
    """

    card: Card
    before: float
    after: float


def calibrate(
    folder: TrafficFolder,
    served: HashWeights,
    model_dir: Path,
    out: Path,
    recipe: Recipe,
    options: TrainOptions,
    console: Console | None = None,
) -> Calibrated:
    """Train a set of the kind that is served on captures of live requests, and write it.

    Parameters
    ----------
    folder : TrafficFolder
    served : HashWeights
        What the server has; says the method and the bits.
    model_dir : Path
        Checkpoint that is served.
    out : Path
        Folder of the new set; its name is the name of the set.
    recipe : Recipe
        Of the method.
    options : TrainOptions
        Those that are about texts have no effect.
    console : rich.console.Console, optional
        For progress; default: standard error.

    Raises
    ------
    HataError
        If there are too few requests, their files are not captures of this model, weights are not
        finite, or the method makes other tensors by now than the set that is served has.
    """
    cost, method = Cost(options.device), served.card.method
    with folder.snapshot() as kept:
        layers, requests = kept.alike()
        if len(requests) < LEAST_REQUESTS:
            raise HataError(
                f"requests in {folder.folder}: expected at least {LEAST_REQUESTS} of the layers "
                f"that are served, found {len(requests)}. Let the server take more traffic, or "
                "raise `share` or lower `min` in the YAML."
            )
        splits = dict(zip(SPLITS, last_tenths(requests), strict=True))
        if not set(layers) <= set(served.layers):
            expected = f"layers of weights {served.card.name}"
            raise HataError(f"{requests[-1]}: expected {expected}, found layers {layers}")
        results: dict[int, LayerResult] = {}
        before: list[float] = []
        device, size = torch.device(options.device), _bytes_per_layer(requests, layers)
        count = captures.together(device, size)
        columns = (TimeElapsedColumn(), TextColumn("{task.fields[note]}"))
        with bars_on(console or Console(stderr=True), *columns) as bars:
            task = bars.add_task("layers", total=len(layers), note="")
            for part in (layers[n : n + count] for n in range(0, len(layers), count)):
                found = {
                    split: [join([kept.read(request, layer) for layer in part]) for request in own]
                    for split, own in splits.items()
                }
                # Values are for measurements.
                found["train"] = [replace(capture, v=None) for capture in found["train"]]
                before += _masses(found["held_out"], served, part, options)
                results |= train_layers(
                    found, part, method, served.card.bits, recipe, options, bars
                )
                _expect_like(served, part[0], results[part[0]].encoder)
                bars.update(
                    task, advance=len(part), note=results[part[-1]].summary(options.budgets[0])
                )
        lengths = {split: list(map(kept.tokens, own)) for split, own in splits.items()}
    card = save_results(
        out,
        method,
        recipe,
        options,
        results,
        measured_data(options.description, lengths),
        cost.entries(list(results.values()), 0),
        model=model_dir.resolve().name,
        fingerprint=served.card.fingerprint,  # of the model as it is served
        revision=model_revision(model_dir),
    )
    return Calibrated(card, sum(before) / len(before), card.held_out[0].mean[method])


def _expect_like(served: HashWeights, layer: int, made: Encoder) -> None:
    """Stop, before all layers are trained, where a server could not swap the set in."""
    try:
        served.encoder(layer).expect_like(made)
    except ValueError as error:
        raise HataError(
            f"calibrate: expected training to make the tensors of weights {served.card.name}, "
            f"found {error}. Serve a set that `hata-sglang train` of this version makes first."
        ) from None


def _bytes_per_layer(requests: Sequence[Path], layers: Sequence[int]) -> int:
    files = [file for request in requests for file in request.rglob("*.safetensors")]
    return max(1, sum(file.stat().st_size for file in files) // len(layers))


def _masses(
    held_out: list[Capture], served: HashWeights, layers: Sequence[int], options: TrainOptions
) -> list[float]:
    """Masses that the set that is served keeps, by layer."""
    device = torch.device(options.device)
    encoder = joined([served.encoder(layer) for layer in layers]).to(device, torch.float32)
    return MeasuredLayers(held_out, len(layers), options, device).mass(encoder, options.budgets[0])
