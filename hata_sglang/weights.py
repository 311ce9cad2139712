"""Hash weights on disk: tensors in safetensors, and a card that says where they come from.

A set of weights is a folder with two files. ``hash.safetensors`` holds one
tensor ``layers.{i}.weight`` ``[Hkv, D, r]`` float32 per trained layer;
``card.json`` holds a `Card`. Sets that ship with the package lie in
``hata_weights/<name>/``.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors

from hata_sglang.errors import Problem, Refusal

TENSORS_FILE = "hash.safetensors"
CARD_FILE = "card.json"
CARD_VERSION = 1
TRAIN_COMMAND = "hata-sglang train --model DIR --data FILE... --bits R --out DIR"

Scalar = str | int | float | bool


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Fingerprint(_Frozen):
    """What must agree between the model that was trained on and the one that is served."""

    model_type: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    rope_theta: float | None

    @classmethod
    def of(cls, hf_config: Any) -> Fingerprint:
        """Read the fingerprint off a transformers config.

        Parameters
        ----------
        hf_config : transformers.PretrainedConfig
            Of the language model, or of a multimodal model that contains one.
        """
        get_text_config = getattr(hf_config, "get_text_config", None)
        config = get_text_config() if get_text_config else hf_config
        heads = config.num_attention_heads
        return cls(
            model_type=config.model_type,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=heads,
            num_key_value_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            vocab_size=config.vocab_size,
            rope_theta=_rope_theta(config),
        )


def _rope_theta(config: Any) -> float | None:
    # transformers 5 moved it into `rope_parameters`, per layer type for some models.
    parameters = getattr(config, "rope_parameters", None) or {}
    theta = parameters.get("rope_theta", getattr(config, "rope_theta", None))
    if theta is None and isinstance(parameters.get("full_attention"), dict):
        theta = parameters["full_attention"].get("rope_theta")
    return None if theta is None else float(theta)


class HeldOut(_Frozen):
    """Attention mass kept on held-out texts at one budget, means over queries and KV heads."""

    budget: int
    sink: int
    recent: int
    mean: dict[str, float] = Field(description="selector -> mean over the layers")
    per_layer: dict[str, dict[int, float]] = Field(description="selector -> layer -> mass")


class TrainingData(_Frozen):
    """What the weights were trained and measured on."""

    description: str
    files: dict[str, str] = Field(description="file name -> SHA-256")
    sequences: int
    tokens: int
    held_out_files: dict[str, str]
    held_out_sequences: int
    held_out_tokens: int


class Card(_Frozen):
    """Where a set of hash weights comes from, and how good it is."""

    version: int = CARD_VERSION
    name: str
    model: str
    fingerprint: Fingerprint
    revision: str = Field(description="SHA-256 of the model's weights file, with its kind")
    method: str
    bits: int
    layers: tuple[int, ...]
    shape: tuple[int, int, int] = Field(description="of every layer: [Hkv, D, bits]")
    training_data: TrainingData
    seed: int
    recipe: dict[str, Scalar] = Field(description="every option that changes the weights")
    held_out: tuple[HeldOut, ...]
    sha256: str = Field(description=f"of {TENSORS_FILE}")
    created_by: dict[str, str] = Field(description="versions of what made the weights")


@dataclass(frozen=True)
class HashWeights:
    """A set of hash weights.

    Attributes
    ----------
    card : Card
    tensors : dict of int to torch.Tensor
        Layer -> ``[Hkv, D, r]`` float32; bit ``j`` of a code is ``x @ W[head, :, j] > 0``.
    """

    card: Card
    tensors: dict[int, torch.Tensor]


def save_weights(folder: str | Path, card: Card, tensors: dict[int, torch.Tensor]) -> Card:
    """Write a set of hash weights.

    Parameters
    ----------
    folder : path
        Made if missing; its two files are replaced.
    card : Card
        Its ``sha256`` is replaced by that of the tensors' file.
    tensors : dict of int to torch.Tensor
        Layer -> ``[Hkv, D, r]`` float32, finite, as `card` says.

    Returns
    -------
    Card
        The card as written.

    Raises
    ------
    Refusal
        If the tensors are not what the card says.
    """
    problems = _tensor_problems(card, tensors)
    if problems:
        raise Refusal(problems)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = dump_tensors(
        {f"layers.{layer}.weight": tensors[layer].contiguous() for layer in sorted(tensors)}
    )
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
        what the card says: missing layer, other dtype or shape, not finite.
    """
    folder = _find(ref)
    card = _read_card(folder)
    try:
        content = (folder / TENSORS_FILE).read_bytes()
    except OSError as error:
        raise _refusal(
            folder / TENSORS_FILE, "a readable file", error.strerror or "none"
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != card.sha256:
        raise _refusal(
            folder / TENSORS_FILE,
            f"SHA-256 {card.sha256} as in its card",
            f"{found}; the file is damaged or belongs to another card",
        )
    try:
        named = load_tensors(content)
    except SafetensorError as error:
        raise _refusal(folder / TENSORS_FILE, "a safetensors file", str(error)) from error
    tensors: dict[int, torch.Tensor] = {}
    for name, tensor in named.items():
        match = re.fullmatch(r"layers\.(\d+)\.weight", name)
        if not match:
            raise _refusal(folder / TENSORS_FILE, "tensors named layers.{i}.weight", repr(name))
        tensors[int(match[1])] = tensor
    problems = _tensor_problems(card, tensors)
    if problems:
        raise Refusal(problems)
    return HashWeights(card, tensors)


def _refusal(setting: str | Path, expected: str, found: str) -> Refusal:
    return Refusal([Problem(str(setting), expected, found)])


def _find(ref: str | Path) -> Path:
    path = Path(ref).expanduser()
    if path.is_dir():
        return path
    tried = [str(path.absolute())]
    shipped = shipped_weights()
    # Only a bare name can be a shipped one; a path must not reach into the package.
    if isinstance(ref, str) and os.sep not in ref:
        root = importlib.resources.files("hata_weights")
        if ref in shipped:
            return Path(str(root / ref))
        tried.append(str(root / ref))
    raise _refusal(
        "weights",
        f"a folder of hash weights or a shipped name ({', '.join(shipped) or 'none'})",
        f"{str(ref)!r} (tried {', '.join(tried)}). Train a set with: {TRAIN_COMMAND}",
    )


def _read_card(folder: Path) -> Card:
    path = folder / CARD_FILE
    try:
        card = Card.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _refusal(path, "a readable file", error.strerror or "none") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise _refusal(path, "a card of hash weights", f"{where}: {first['msg']}") from error
    if card.version != CARD_VERSION:
        raise _refusal(path, f"version {CARD_VERSION}", f"version {card.version}")
    return card


def _tensor_problems(card: Card, tensors: dict[int, torch.Tensor]) -> list[Problem]:
    problems = []
    for layer in sorted(set(card.layers) | set(tensors)):
        setting = f"hash weights {card.name}, layer {layer}"
        tensor = tensors.get(layer)
        if tensor is None:
            problems.append(Problem(setting, "a tensor, as in the card", "none"))
        elif layer not in card.layers:
            problems.append(Problem(setting, "no tensor, as in the card", "one"))
        elif tensor.dtype != torch.float32:
            problems.append(Problem(setting, "dtype float32", str(tensor.dtype).split(".")[-1]))
        elif tuple(tensor.shape) != card.shape:
            problems.append(Problem(setting, f"shape {list(card.shape)}", str(list(tensor.shape))))
        elif not torch.isfinite(tensor).all():
            count = int((~torch.isfinite(tensor)).sum())
            problems.append(Problem(setting, "finite numbers", f"{count} NaN or infinite"))
    return problems


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
        One per field of the fingerprint that differs, and one if the card's
        own shape does not fit its fingerprint; empty if the weights fit.
    """
    card = weights.card
    served = Fingerprint.of(hf_config)
    problems = []
    for field in Fingerprint.model_fields:
        expected, found = getattr(card.fingerprint, field), getattr(served, field)
        if expected != found:
            problems.append(
                Problem(
                    f"model for weights {card.name}, {field}",
                    f"{expected} (trained on {card.model})",
                    str(found),
                )
            )
    want = (card.fingerprint.num_key_value_heads, card.fingerprint.head_dim, card.bits)
    if card.shape != want:
        problems.append(
            Problem(f"hash weights {card.name}", f"shape {list(want)}", str(list(card.shape)))
        )
    return problems
