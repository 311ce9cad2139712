"""Methods that can be trained. A new one is a file with a recipe and a trainer, and a line here."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from hata_sglang.errors import Problem, Refusal
from hata_sglang.training.hata import HataRecipe, HataTrainer
from hata_sglang.training.layer_data import SequenceData


class Recipe(Protocol):
    """Options of a method: a frozen dataclass."""

    steps: int

    def card_entry(self) -> dict[str, Any]:
        """What the card records."""


class LayerTrainer(Protocol):
    """Trains the weights of one layer."""

    def step(self) -> torch.Tensor:
        """Take one step and return its loss."""

    def weight(self) -> torch.Tensor:
        """The weights as they are now."""


METHODS: dict[str, tuple[type, type]] = {"hata": (HataRecipe, HataTrainer)}


def make_trainer(
    method: str, data: list[SequenceData], bits: int, recipe: Recipe, seed: int
) -> LayerTrainer:
    """Build the trainer of `method` for one layer.

    Raises
    ------
    Refusal
        If the method cannot be trained, or the recipe belongs to another one.
    """
    if method not in METHODS:
        raise Refusal([Problem("method", f"one of {', '.join(METHODS)}", repr(method))])
    recipe_type, trainer_type = METHODS[method]
    if not isinstance(recipe, recipe_type):
        raise Refusal([Problem("recipe", recipe_type.__name__, type(recipe).__name__)])
    return trainer_type(data, bits, recipe, seed)
