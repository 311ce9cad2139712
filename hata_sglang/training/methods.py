"""Methods that can be trained. A new one is a file with a recipe and a trainer, and a line here."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from hata_kernels.encoders import Encoder
from hata_sglang.errors import Refusal
from hata_sglang.training.asymmetric import AsymmetricRecipe, AsymmetricTrainer
from hata_sglang.training.hashattention import (
    BITS_PER_HEAD,
    HashAttentionRecipe,
    HashAttentionTrainer,
)
from hata_sglang.training.hata import HataRecipe, HataTrainer
from hata_sglang.training.layer_data import SequenceData


class Recipe(Protocol):
    """Options of a method: a frozen dataclass, whose fields ``--option`` sets."""

    steps: int

    def card_entry(self) -> dict[str, Any]:
        """What the card records."""


class LayerTrainer(Protocol):
    """Trains the encoder of one layer."""

    def step(self) -> torch.Tensor:
        """Take one step and return its loss."""

    def encoder(self) -> Encoder:
        """The encoder as it is now, float32, a copy."""


METHODS: dict[str, tuple[type, type]] = {
    "hata": (HataRecipe, HataTrainer),
    "hashattention": (HashAttentionRecipe, HashAttentionTrainer),
    "asymmetric": (AsymmetricRecipe, AsymmetricTrainer),
}
DEFAULT_BITS = 128


def check_method(method: str) -> None:
    """Refuse a method that cannot be trained.

    Raises
    ------
    Refusal
    """
    if method not in METHODS:
        raise Refusal.of("method", f"one of {', '.join(METHODS)}", repr(method))


def resolve_bits(method: str, bits: int | None, group: int) -> int:
    """Bits per token and KV head.

    Parameters
    ----------
    method : str
    bits : int or None
        As asked for; None stands for the method's own number.
    group : int
        Query heads per KV head.

    Raises
    ------
    Refusal
        If `bits` fills no words, or the method leaves no choice and it is another number.
    """
    if method == "hashattention":
        fixed = BITS_PER_HEAD * group
        if bits not in (None, fixed):
            expected = f"{fixed}, {BITS_PER_HEAD} for each of the {group} query heads of a KV head"
            raise Refusal.of("bits", expected, str(bits))
        return fixed
    bits = DEFAULT_BITS if bits is None else bits
    if bits < 32 or bits % 32:
        raise Refusal.of("bits", "a positive multiple of 32", str(bits))
    return bits


def make_trainer(
    method: str, data: list[SequenceData], bits: int, recipe: Recipe, seed: int
) -> LayerTrainer:
    """Build the trainer of `method` for one layer.

    Raises
    ------
    Refusal
        If the method cannot be trained, or the recipe belongs to another one.
    """
    check_method(method)
    recipe_type, trainer_type = METHODS[method]
    if not isinstance(recipe, recipe_type):
        raise Refusal.of("recipe", recipe_type.__name__, type(recipe).__name__)
    return trainer_type(data, bits, recipe, seed)
