"""Layer numbers and ranges as the YAML writes them: ``5``, ``"5"`` or ``"2-15"``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

# A typo such as "0-1000000000" must be an error message, not a machine out of memory. The model's
# own number of layers is checked when the configuration is resolved.
MAX_LAYER = 9_999

EXPECTED = "a layer number or a range such as 5 or '2-15' (first <= last, counted from 0)"

_RANGE = re.compile(r"\s*(\d{1,9})(?:\s*-\s*(\d{1,9}))?\s*", re.ASCII)


def parse_range(value: Any) -> range:
    """The layers that one YAML value names.

    Parameters
    ----------
    value : int or str
        ``5``, ``"5"`` or ``"2-15"`` (both ends included), counted from 0.

    Returns
    -------
    range
        The layers, at least one.

    Raises
    ------
    ValueError
        If `value` is none of these; the message is `EXPECTED`.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        first = last = value
    elif isinstance(value, str) and (match := _RANGE.fullmatch(value)):
        first = int(match[1])
        last = first if match[2] is None else int(match[2])
    else:
        raise ValueError(EXPECTED)
    if not first <= last <= MAX_LAYER:
        raise ValueError(EXPECTED)
    return range(first, last + 1)


def layers_of(spans: Iterable[range]) -> list[int]:
    """The layers that any of the ranges holds, in order; linear in the number of ranges.

    Parameters
    ----------
    spans : iterable of range
        As `parse_range` makes them; they may overlap.

    Returns
    -------
    list of int
    """
    held = bytearray(MAX_LAYER + 1)
    for span in spans:
        held[span.start : span.stop] = b"\1" * len(span)
    return [layer for layer, mark in enumerate(held) if mark]


def format_range(layers: range) -> str:
    """The canonical text of a range: ``"5"`` or ``"2-15"``."""
    return str(layers[0]) if len(layers) == 1 else f"{layers[0]}-{layers[-1]}"


def format_layers(layers: Iterable[int]) -> str:
    """Layer numbers in few words: ``[0, 1, 2, 7]`` gives ``"0-2, 7"``; none give ``"none"``."""
    runs: list[range] = []
    for layer in sorted(set(layers)):
        if runs and runs[-1].stop == layer:
            runs[-1] = range(runs[-1].start, layer + 1)
        else:
            runs.append(range(layer, layer + 1))
    return ", ".join(map(format_range, runs)) or "none"
