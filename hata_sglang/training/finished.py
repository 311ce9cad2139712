"""Finished layers in the work folder, so that a run that was cut off goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from hata_sglang import __version__
from hata_sglang.methods import Recipe, methods
from hata_sglang.training.options import TrainOptions
from hata_sglang.training.train_layer import LayerResult
from hata_sglang.weights import LEFT_OUT, Fingerprint


class FinishedLayers:
    """A folder of layer results, of one method with everything that decides its weights.

    Parameters
    ----------
    folder : Path
        Each combination of captures, method, bits, recipe and options has its
        own folder in it, named after a digest.
    captures : str
        Digest of the captures.
    method : str
    bits : int
    recipe : Recipe
    options : TrainOptions
    fingerprint : Fingerprint
        Of the model.
    """

    def __init__(
        self,
        folder: Path,
        captures: str,
        method: str,
        bits: int,
        recipe: Recipe,
        options: TrainOptions,
        fingerprint: Fingerprint,
    ) -> None:
        content = {
            "captures": captures,
            "method": method,
            "bits": bits,
            "recipe": asdict(recipe),
            "options": options.deciding(),
            "versions": [__version__, torch.__version__],
        }
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        self.folder = folder / f"{method}-{bits}b-{digest[:16]}"
        self.method, self.shape = method, fingerprint.shape

    def _path(self, layer: int) -> Path:
        return self.folder / f"layer-{layer:03d}.safetensors"

    def __contains__(self, layer: int) -> bool:
        return self._path(layer).is_file()

    def write(self, layer: int, result: LayerResult) -> None:
        """Keep the result of one layer."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {
            "options": result.encoder.options(),
            "loss": result.loss,
            "steps": result.steps,
            "masses": result.masses,
            "output_errors": result.output_errors,
            "seconds": result.seconds,
        }
        path = self._path(layer)
        # Renamed when whole: a run that is cut off while writing must not leave half a file.
        temporary = path.with_suffix(".part")
        tensors = result.encoder.tensors() | {LEFT_OUT: result.left_out}
        save_file(tensors, temporary, metadata={"result": json.dumps(content)})
        os.replace(temporary, path)

    def read(self, layer: int) -> LayerResult:
        """Load the result of one layer."""
        with safe_open(self._path(layer), framework="pt") as file:
            content = json.loads(file.metadata()["result"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        left_out = tensors.pop(LEFT_OUT)
        make = methods()[self.method].encoder.from_tensors
        encoder = make(tensors, **self.shape.sizes, **content["options"])
        return LayerResult(
            encoder=encoder,
            loss=content["loss"],
            steps=content["steps"],
            masses=tuple(content["masses"]),
            left_out=left_out,
            output_errors=tuple(content["output_errors"]),
            seconds=content["seconds"],
        )
