"""``hata-sglang import-hashattention``: the authors' HashAttention weights as a set of ours.

Two formats, both of github.com/xAlg-ai: the state dict that training writes
(``.pt``, repository HashAttention-1.0), and the ``.hat_weights.pkl`` that the
conversion of sparse-attention-hub makes of it. See docs/hashattention.md.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hata_kernels.encoders import Encoder, MlpEncoder
from hata_sglang.config.layer_ranges import format_layers
from hata_sglang.config.problems import shorten
from hata_sglang.errors import HataError, Refusal
from hata_sglang.files import file_sha256, model_revision
from hata_sglang.training.architectures import plan_layers
from hata_sglang.training.checkpoint import read_config
from hata_sglang.training.report import versions
from hata_sglang.training.tensor_files import load_state_dict, load_tensor_pickle
from hata_sglang.weights import Card, Fingerprint, TrainingData, save_weights

LayerTensors = dict[int, dict[str, torch.Tensor]]

# layer, query or key, head, place in nn.Sequential (SiLU takes the odd ones), weight or bias
_STATE_KEY = re.compile(
    r"(\d{1,6})\.learning_to_hash_transformation_([qk])\.(\d{1,6})\.([024])\.(weight|bias)",
    re.ASCII,
)
_SIDES = {"q": "query", "k": "key"}
_KINDS = {"matrix": "weight", "bias": "bias"}


def add_import_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``hata-sglang import-hashattention`` on `parser`."""
    parser.set_defaults(action=run_import)
    parser.add_argument("file", type=Path, metavar="FILE", help="the authors' .pt or .pkl file")
    parser.add_argument(
        "--model", type=Path, required=True, help="checkpoint folder of the model it is for"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights and card")
    parser.add_argument(
        "--dtype",
        choices=["float32", "float16"],
        default="float32",
        help="of the weights' file (default float32)",
    )


def run_import(args: argparse.Namespace) -> int:
    """Run ``hata-sglang import-hashattention``.

    Returns
    -------
    int
        Exit code 0. Failures raise `HataError`.
    """
    card = import_hashattention(args.file, args.model, args.out, dtype=args.dtype)
    print(f"wrote {args.out}: {len(card.layers)} layers, {card.bits} bits per token and KV head")
    return 0


def import_hashattention(
    file: str | Path, model_dir: str | Path, out: str | Path, *, dtype: str = "float32"
) -> Card:
    """Turn a file of the authors into a set of hash weights.

    Parameters
    ----------
    file : path
        ``.pt`` (or ``.pth``, ``.bin``): state dict. ``.pkl``: converted weights.
        Neither can run code here (`tensor_files`).
    model_dir : path
        Hugging Face checkpoint of the model that the weights are for.
    out : path
        Folder of the weights; its name is the name of the set.
    dtype : {"float32", "float16"}
        Of the weights' file.

    Returns
    -------
    Card

    Raises
    ------
    Refusal
        If the file is of another structure, holds more than tensors, or does
        not fit the model.
    """
    file, model_dir, out = Path(file), Path(model_dir), Path(out)
    config = read_config(model_dir)
    fingerprint, plan = Fingerprint.of(config), plan_layers(config)
    layers = read_layers(file)
    encoders = {layer: _encoder(file, layer, layers[layer], fingerprint) for layer in layers}
    expected, found = fingerprint.num_hidden_layers, sorted(layers)
    if found != list(range(expected)):
        in_order = found == list(range(len(found)))
        named = f"{len(found)} layers" if in_order else f"layers {format_layers(found)}"
        raise Refusal.of(file, f"{expected} layers, as {model_dir.name} has", named)
    encoders = {layer: encoders[layer] for layer in plan.trained}
    first = encoders[plan.trained[0]]
    card = Card(
        name=out.name,
        model=model_dir.resolve().name,
        fingerprint=fingerprint,
        revision=model_revision(model_dir),
        method="hashattention",
        bits=first.bits,
        options=first.options(),
        layers=plan.trained,
        shapes={name: tuple(tensor.shape) for name, tensor in first.tensors().items()},
        training_data=TrainingData(
            description="imported, not trained here: weights of the authors of HashAttention",
            files={file.name: file_sha256(file)},
            sequences=0,
            tokens=0,
            step_chosen_on="nothing",
        ),
        seed=0,
        recipe={"imported_from": file.name, "format": _format(file)},
        held_out=(),
        sha256="",
        created_by=versions(),
    )
    return save_weights(out, card, encoders, getattr(torch, dtype))


def read_layers(file: Path) -> LayerTensors:
    """Read a file of the authors.

    Returns
    -------
    dict of int to dict of str to torch.Tensor
        Layer -> tensors with the names of `MlpEncoder`, float32.

    Raises
    ------
    Refusal
    """
    read = {"state dict": _from_state_dict, "converted weights": _from_pickle}[_format(file)]
    try:
        return read(file)
    except HataError:
        raise
    # Whatever else goes wrong is a structure that nobody described.
    except Exception as error:
        found = f"another structure ({type(error).__name__}: {error})"
        raise Refusal.of(file, f"{_format(file)} of HashAttention", found) from error


def _format(file: Path) -> str:
    formats = dict.fromkeys((".pt", ".pth", ".bin"), "state dict") | {".pkl": "converted weights"}
    if file.suffix not in formats:
        raise Refusal.of(file, f"a name that ends in {', '.join(formats)}", repr(file.suffix))
    return formats[file.suffix]


def _from_state_dict(file: Path) -> LayerTensors:
    found: dict[tuple[int, str], dict[int, torch.Tensor]] = {}
    state = load_state_dict(file)
    if not isinstance(state, Mapping) or not state:
        raise Refusal.of(file, "a dict of tensors (a state dict)", _kind(state))
    for name, value in state.items():
        match = _STATE_KEY.fullmatch(str(name))
        if match is None:
            expected = (
                "names LAYER.learning_to_hash_transformation_(q|k).HEAD.(0|2|4).(weight|bias)"
            )
            raise Refusal.of(file, expected, shorten(name))
        layer, side, head, place, kind = match.groups()
        # nn.Linear keeps [out, in].
        tensor = _tensor(value).mT if kind == "weight" else _tensor(value)
        own = found.setdefault((int(layer), f"{_SIDES[side]}.{int(place) // 2}.{kind}"), {})
        own[int(head)] = tensor
    layers: LayerTensors = {}
    for (layer, name), heads in found.items():
        if sorted(heads) != list(range(len(heads))):
            expected = f"heads 0 to {len(heads) - 1} in layer {layer}"
            raise Refusal.of(file, expected, format_layers(heads))
        stacked = torch.stack([heads[head] for head in range(len(heads))])
        layers.setdefault(layer, {})[name] = stacked
    return layers


def _from_pickle(file: Path) -> LayerTensors:
    content = load_tensor_pickle(file)
    if not isinstance(content, Mapping) or not content:
        raise Refusal.of(file, "a dict of layers", _kind(content))
    layers: LayerTensors = {}
    wanted = {f"{side}_{field}" for side in _SIDES.values() for field in _KINDS}
    for layer, lists in content.items():
        if not isinstance(layer, int) or not isinstance(lists, Mapping) or set(lists) != wanted:
            expected = f"layer numbers with {', '.join(sorted(wanted))}"
            names = shorten(sorted(map(str, lists))) if isinstance(lists, Mapping) else _kind(lists)
            raise Refusal.of(file, expected, f"{shorten(layer)} with {names}")
        tensors = layers[layer] = {}
        for name, values in lists.items():
            side, field = name.split("_")
            for n, value in enumerate(values):
                tensors[f"{side}.{n}.{_KINDS[field]}"] = _tensor(value)
    return layers


def _tensor(value: Any) -> torch.Tensor:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.astype(np.float32))
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"expected a tensor, found {type(value).__name__}")
    return value.detach().float()


def _kind(value: Any) -> str:
    return "an empty dict" if isinstance(value, Mapping) else f"a {type(value).__name__}"


def _encoder(
    file: Path, layer: int, tensors: Mapping[str, torch.Tensor], fingerprint: Fingerprint
) -> Encoder:
    try:
        return MlpEncoder(tensors, **fingerprint.shape.sizes)
    except ValueError as error:
        size = f"{fingerprint.num_attention_heads} query heads from {fingerprint.head_dim} numbers"
        expected = f"MLPs of {size} to 32 bits, as the model has"
        raise Refusal.of(f"{file}, layer {layer}", expected, str(error)) from error
