"""Hash weights on disk: tensors in safetensors, and a card that says where they come from.

A set of weights is a folder with two files. ``hash.safetensors`` holds the tensors of one encoder
(`hata_kernels.encoders`) per trained layer, named ``layers.{i}.{tensor}``, float32, or float16 for
half the space; beside them, in sets whose calibration measured it, float32 ``layers.{i}.left_out``
says what the mean of the values left out weighs (`hata_kernels.attend.left_out`). ``card.json``
holds a `Card`. Sets that ship with the package lie in ``hata_weights/<name>/``.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors

from hata_kernels.encoders import Encoder
from hata_sglang.config.layer_ranges import format_layers
from hata_sglang.errors import Problem, Refusal, printable, refuse_any
from hata_sglang.files import locate, read_regular
from hata_sglang.methods import choice, method_names, methods
from hata_sglang.weights.card import (
    CARD_FILE,
    CARD_VERSION,
    LEFT_OUT,
    TENSORS_FILE,
    Card,
    Fingerprint,
    Versioned,
)

DTYPES = (torch.float32, torch.float16)
#: A card of 128 layers and ten budgets has 200 KB; a set for 126 layers of 128 heads, 5 GB.
MAX_CARD_BYTES, MAX_SET_BYTES = 2**20, 2**33
TRAIN_COMMAND = "hata-sglang train --model DIR --data FILE... --method METHOD --out DIR"


@dataclass(frozen=True)
class HashWeights:
    """A set of hash weights.

    Attributes
    ----------
    card : Card
    layers : dict of int to dict of str to torch.Tensor
        Layer -> the tensors of its encoder, float32.
    left_out : dict of int to torch.Tensor
        Layer -> float32 ``[Hq, RATIOS]``, what the mean of the values left out weighs. Empty where
        the set does not say.
    """

    card: Card
    layers: dict[int, dict[str, torch.Tensor]]
    left_out: dict[int, torch.Tensor] = field(default_factory=dict)

    def encoder(self, layer: int) -> Encoder:
        """Build the encoder of one layer.

        Parameters
        ----------
        layer : int
            One of the card's.

        Returns
        -------
        hata_kernels.encoders.Encoder
            Float32, on the CPU.

        Raises
        ------
        Refusal
            If the tensors or options are not those of the card's method, model and bits.
        """
        card = self.card
        setting = f"hash weights {card.name}, layer {layer}"
        method = methods().get(card.method)
        if method is None or method.encoder is None:
            raise Refusal.of(setting, choice(method_names(coded=True)), repr(card.method))
        try:
            encoder = method.encoder.from_tensors(
                self.layers[layer],
                **card.fingerprint.shape.sizes,
                **card.options,
            )
        except (TypeError, ValueError, OverflowError) as error:
            expected = f"tensors and options of method {card.method} for {card.model}"
            raise Refusal.of(setting, expected, str(error)) from error
        if encoder.bits != card.bits:
            raise Refusal.of(setting, f"{card.bits} bits, as in the card", f"{encoder.bits}")
        return encoder


def save_weights(
    folder: str | Path,
    card: Card,
    encoders: Mapping[int, Encoder],
    dtype: torch.dtype = torch.float32,
    left_out: Mapping[int, torch.Tensor] = MappingProxyType({}),
) -> Card:
    """Write a set of hash weights.

    Parameters
    ----------
    folder : path
        Made if missing; its two files are replaced.
    card : Card
        Its ``sha256`` is replaced by that of the tensors' file.
    encoders : mapping of int to hata_kernels.encoders.Encoder
        By layer, on any device; finite, and as `card` says.
    dtype : {torch.float32, torch.float16}
        Of the encoders' tensors. Float16 takes half the space and rounds the weights.
    left_out : mapping of int to torch.Tensor, optional
        By layer, ``[Hq, RATIOS]`` (`HashWeights`), as `card` says.

    Returns
    -------
    Card
        The card as written.

    Raises
    ------
    Refusal
        If the encoders are not what the card says, or do not fit `dtype`.
    """
    problems = []
    if dtype not in DTYPES:
        problems.append(Problem("dtype of hash weights", "float32 or float16", _name(dtype)))
    for layer, encoder in sorted(encoders.items()):
        said = (methods()[card.method].encoder.__name__, card.bits, card.options)
        found = (type(encoder).__name__, encoder.bits, encoder.options())
        problems += [
            Problem(
                f"hash weights {card.name}, layer {layer}, {field}", f"{a}, as in the card", str(b)
            )
            for field, a, b in zip(("encoder", "bits", "options"), said, found, strict=True)
            if a != b
        ]
    named = {
        # A copy: safetensors refuses layers that share memory.
        f"layers.{layer}.{name}": tensor.detach().to("cpu", dtype, copy=True).contiguous()
        for layer, encoder in sorted(encoders.items())
        for name, tensor in encoder.tensors().items()
    } | {
        f"layers.{layer}.{LEFT_OUT}": tensor.detach().to("cpu", torch.float32, copy=True)
        for layer, tensor in sorted(left_out.items())
    }
    problems += _tensor_problems(card, named)
    refuse_any(problems)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = dump_tensors(named)
    written = card.model_copy(update={"sha256": hashlib.sha256(content).hexdigest()})
    # The card comes last: a folder without one is not a set of weights.
    (folder / CARD_FILE).unlink(missing_ok=True)
    (folder / TENSORS_FILE).write_bytes(content)
    (folder / CARD_FILE).write_text(written.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return written


def shipped_weights() -> list[str]:
    """Names of the sets of weights that ship with the package, sorted."""
    root = importlib.resources.files("hata_weights")
    return sorted(e.name for e in root.iterdir() if e.is_dir() and (e / CARD_FILE).is_file())


def read_card(ref: str | Path) -> Card:
    """Read the card of a set of hash weights, and not its tensors.

    Parameters
    ----------
    ref : str or Path
        As in `load_weights`.

    Raises
    ------
    Refusal
        If nothing is found, or the card cannot be read.
    """
    return _read_card(_find(ref))


def load_weights(ref: str | Path) -> HashWeights:
    """Load a set of hash weights and check it against its card.

    Parameters
    ----------
    ref : str or Path
        A folder, or the name of a set that ships with the package. A folder
        that exists goes first.

    Returns
    -------
    HashWeights

    Raises
    ------
    Refusal
        If nothing is found (the message lists the places tried, the shipped
        names and the training command), a file is damaged, or a tensor is not
        what the card says: missing, other dtype or shape, not finite.
    """
    folder = _find(ref)
    card = _read_card(folder)
    expected = f"the tensors of the shapes in {CARD_FILE}"
    content = read_regular(folder / TENSORS_FILE, expected, _largest_file(card))
    found = hashlib.sha256(content).hexdigest()
    if found != card.sha256:
        raise Refusal.of(
            folder / TENSORS_FILE,
            f"SHA-256 {card.sha256} as in its card",
            f"{found}; the file is damaged or belongs to another card",
        )
    try:
        named = load_tensors(content)
    except SafetensorError as error:
        raise Refusal.of(folder / TENSORS_FILE, "a safetensors file", str(error)) from error
    refuse_any(_tensor_problems(card, named))
    layers = {
        layer: {name: named[f"layers.{layer}.{name}"].float() for name in card.shapes}
        for layer in card.layers
    }
    left_out = {}
    if card.left_out:
        left_out = {layer: named[f"layers.{layer}.{LEFT_OUT}"].float() for layer in card.layers}
    return HashWeights(card, layers, left_out)


def _find(ref: str | Path) -> Path:
    path = locate(ref)
    if os.path.isdir(path):
        return Path(path)
    tried = [printable(path, 300)]
    shipped = shipped_weights()
    # Only a bare name can be a shipped one; a path must not reach into the package.
    if isinstance(ref, str) and os.sep not in ref:
        root = importlib.resources.files("hata_weights")
        if ref in shipped:
            return Path(str(root / ref))
        tried.append(printable(str(root / ref), 300))
    raise Refusal.of(
        "weights",
        f"a folder of hash weights or a shipped name ({', '.join(shipped) or 'none'})",
        f"{printable(str(ref), 300)!r} (tried {', '.join(tried)}). Train a set with: "
        f"{TRAIN_COMMAND}",
    )


def _read_card(folder: Path) -> Card:
    path = folder / CARD_FILE
    try:
        content = read_regular(path, "a card of hash weights", MAX_CARD_BYTES)
        card = Versioned.model_validate_json(content)
        if card.version == CARD_VERSION:
            card = Card.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = printable(".".join(str(part) for part in first["loc"]), 200) or "the file"
        raise Refusal.of(path, "a card of hash weights", f"{where}: {first['msg']}") from error
    if card.version != CARD_VERSION:
        raise Refusal.of(path, f"version {CARD_VERSION}", f"version {card.version}")
    return card


def _largest_file(card: Card) -> int:
    """Bytes of the tensors as float32, and ample room for the header that lists them."""
    shapes = card.tensor_shapes()
    numbers = sum(math.prod(shape) for shape in shapes.values())
    return min(4 * numbers + 1000 * len(shapes) + 2**20, MAX_SET_BYTES)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _tensor_problems(card: Card, named: Mapping[str, torch.Tensor]) -> Iterator[Problem]:
    expected = card.tensor_shapes()
    for name in (*expected, *(name for name in sorted(named) if name not in expected)):
        setting = f"hash weights {card.name}, {name}"
        tensor = named.get(name)
        if tensor is None:
            yield Problem(setting, "a tensor, as in the card", "none")
        elif name not in expected:
            yield Problem(setting, "no tensor, as in the card", "one")
        elif tensor.dtype not in DTYPES:
            yield Problem(setting, "dtype float32 or float16", _name(tensor.dtype))
        elif tuple(tensor.shape) != expected[name]:
            shape = str(list(expected[name]))
            yield Problem(setting, f"shape {shape}", str(list(tensor.shape)))
        elif not torch.isfinite(tensor).all():
            count = int((~torch.isfinite(tensor)).sum())
            yield Problem(setting, "finite numbers", f"{count} NaN or infinite")
        elif name.endswith(f".{LEFT_OUT}"):
            yield from _left_out_problems(setting, tensor)
        elif name.endswith("weight") and (empty := _empty_heads(tensor)):
            # All keys of such a head would have the same code.
            wanted = "numbers other than zero in every head"
            yield Problem(setting, wanted, f"zeros alone in heads {format_layers(empty)}")


def _left_out_problems(setting: str, weights: torch.Tensor) -> Iterator[Problem]:
    if weights.min() < 0 or weights.max() > 1:
        low, high = (f"{float(bound):g}" for bound in weights.aminmax())
        yield Problem(setting, "weights from 0 to 1", f"{low} to {high}")
    elif weights[:, 0].any():
        yield Problem(setting, "0 where nothing is left out (first column)", "another number")


def _empty_heads(weight: torch.Tensor) -> list[int]:
    """The heads (first dimension) of a weight all of whose numbers are zero."""
    rows = weight.reshape(weight.shape[0], -1)
    return (~rows.any(dim=1)).nonzero().flatten().tolist()


def check_against_model(weights: HashWeights, hf_config: Any) -> list[Problem]:
    """List why weights do not fit a model.

    Parameters
    ----------
    weights : HashWeights
    hf_config : transformers.PretrainedConfig
        Of the model to be served.

    Returns
    -------
    list of Problem
        One per field of the fingerprint that differs; empty if the weights fit.
    """
    card = weights.card
    served = Fingerprint.of(hf_config)
    return [
        Problem(
            f"model for weights {card.name}, {field}",
            f"{expected} (trained on {card.model})",
            str(getattr(served, field)),
        )
        for field, expected in card.fingerprint
        if expected != getattr(served, field)
    ]
