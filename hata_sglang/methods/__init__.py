"""Methods: each is one file, and this folder is the only list of them.

A file of this folder that holds ``METHOD`` is a method; so is what other installed packages name
under the entry points ``hata_sglang.methods``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType

from hata_sglang.errors import Refusal
from hata_sglang.methods.base import MAX_BITS, WORD_BITS, LayerTrainer, Method, Recipe

__all__ = [
    "MAX_BITS",
    "WORD_BITS",
    "LayerTrainer",
    "Method",
    "Recipe",
    "choice",
    "method_names",
    "methods",
    "trainable",
]

ENTRY_POINTS = "hata_sglang.methods"


@cache
def methods() -> Mapping[str, Method]:
    """Every method by name: those of this folder, then those of other packages.

    Raises
    ------
    Refusal
        If another package's method cannot be loaded, is none, or has the name of one that exists.
    """
    found: dict[str, Method] = {}
    for module in pkgutil.iter_modules(__path__):
        own = getattr(importlib.import_module(f"{__name__}.{module.name}"), "METHOD", None)
        if own is not None:
            found[own.name] = own
    for point in entry_points(group=ENTRY_POINTS):
        method = _load(point)
        if method.name in found:
            expected = f"a method with a name of its own, not {method.name}"
            raise Refusal.of(f"entry point {point.name} ({point.value})", expected, "a second one")
        found[method.name] = method
    return MappingProxyType(found)


def _load(point: EntryPoint) -> Method:
    setting, expected = f"entry point {point.name} ({point.value})", "a hata_sglang.methods.Method"
    try:
        method = point.load()
    except Exception as error:  # whatever a foreign module meets when it is imported
        raise Refusal.of(setting, expected, f"{type(error).__name__}: {error}") from error
    if not isinstance(method, Method):
        raise Refusal.of(setting, expected, type(method).__name__)
    return method


def method_names(**properties: object) -> list[str]:
    """Names of the methods whose properties have these values, such as ``trained=True``."""
    return [
        name
        for name, method in methods().items()
        if all(getattr(method, key) == value for key, value in properties.items())
    ]


def trainable(name: str) -> Method:
    """The method of a name, to train.

    Raises
    ------
    Refusal
        If there is none that can be trained.
    """
    names = method_names(trainable=True)
    if name not in names:
        raise Refusal.of("method", choice(names), repr(name))
    return methods()[name]


def choice(names: Sequence[str]) -> str:
    """The names as a choice: ``a, b or c``."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last
