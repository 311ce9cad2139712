"""What is wrong between settings of a configuration, each of which may be fine alone.

The rules read the raw mapping and skip what is malformed, so that one run reports it along with
what `hata_sglang.config.problems` finds in single values.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from hata_sglang.config.budget import MAX_TOKENS
from hata_sglang.config.layer_ranges import format_layers, format_range, layers_of, parse_range
from hata_sglang.config.plan import CODED_METHODS, TRAINED_METHODS, Method
from hata_sglang.config.problems import Namer, shorten
from hata_sglang.config.yaml_file import KeyPath
from hata_sglang.errors import Problem

#: Bits per code that a method allows; hashattention, with a word per query head, has no such bound.
MAX_BITS = 256
NO_BITS = {
    "exact": "which ranks by the true scores and keeps no codes",
    "streaming": "which keeps the first and last tokens and no codes",
}
_UNTRAINED = set(get_args(Method)) - set(TRAINED_METHODS)
_WITHOUT_SEED = set(get_args(Method)) - {"random"}


def rule_problems(
    data: Mapping[str, Any], defaults: Mapping[str, Any], name: Namer
) -> Iterator[Problem]:
    """Problems between settings, each of which may be fine alone.

    Parameters
    ----------
    data : mapping
        The raw settings, possibly malformed.
    defaults : mapping
        Values of the settings that `data` leaves out.
    name : callable
        Gives the text of a setting from its key path.

    Yields
    ------
    Problem
        None when the settings go together, or are too malformed to tell.
    """
    merged = {**defaults, **data}
    layers = merged["layers"] if isinstance(merged["layers"], Mapping) else {}
    # A null setting of a layer is one that is left out.
    overrides = {
        str(key): {setting: value for setting, value in own.items() if value is not None}
        for key, own in layers.items()
        if isinstance(own, Mapping)
    }
    yield from _level_problems((), data, merged, name)
    for key, own in overrides.items():
        level = {**merged, **own}
        if "weights" not in own and level.get("method") != merged.get("method"):
            level["weights"] = None  # the whole model's were trained for another method
        yield from _level_problems(("layers", key), own, level, name)
    yield from _seed_problems(merged, overrides, name)
    yield from _dense_problems(merged, overrides, name, is_default="dense_layers" not in data)
    yield from _overlap_problems(layers, name)


def _level_problems(path: KeyPath, own: Mapping, merged: Mapping, name: Namer) -> Iterator[Problem]:
    """Rules of the settings of one level: the whole model (`path` empty) or one entry of layers."""
    if path and not own:
        yield Problem(name(path), "at least one setting", "none")
    if own.get("dense") is True:
        others = sorted(str(key) for key in own if key != "dense")
        if others:
            yield Problem(
                name(path),
                "dense: true alone (a dense layer has no other settings)",
                "also " + ", ".join(others),
            )
        return
    method = _word(merged.get("method"))
    names_method = not path or "method" in own
    if method in TRAINED_METHODS and merged.get("weights") is None and names_method:
        yield Problem(
            name((*path, "weights")),
            f"trained weights for method {method}: a path, or a name that `hata-sglang weights` "
            "lists",
            "nothing",
        )
    if method in _UNTRAINED and own.get("weights") is not None:
        yield Problem(
            name((*path, "weights")), f"no weights with method {method}", shorten(own["weights"])
        )
    if method in NO_BITS and own.get("bits") is not None:
        yield Problem(
            name((*path, "bits")),
            f"no bits with method {method}, {NO_BITS[method]}",
            shorten(own["bits"]),
        )
    if names_method or "bits" in own:
        yield from _bits_problems(path, merged, name)
    if names_method or own.keys() & {"budget", "sink", "recent"}:
        yield from _floor_problems(path, merged, name)


def _word(value: Any) -> str | None:
    """`value` where it can be a method's name; a list would not even hash."""
    return value if isinstance(value, str) else None


def _bits_problems(path: KeyPath, merged: Mapping, name: Namer) -> Iterator[Problem]:
    method, bits = _word(merged.get("method")), merged.get("bits")
    if method not in CODED_METHODS or method == "hashattention" or not isinstance(bits, int):
        return
    # What is malformed for every method is reported as a single value.
    if MAX_BITS < bits <= 1024 and bits % 32 == 0:
        expected = f"a multiple of 32 from 32 to {MAX_BITS} with method {method}"
        yield Problem(name((*path, "bits")), expected, str(bits))


def _floor_problems(path: KeyPath, merged: Mapping, name: Namer) -> Iterator[Problem]:
    budget, sink, recent = merged.get("budget"), merged["sink"], merged["recent"]
    key: KeyPath = ("budget",)
    if isinstance(budget, Mapping):
        budget, key = budget.get("min"), ("budget", "min")
    numbers = (budget, sink, recent)
    # Others are reported as single values.
    if all(type(number) is int and 0 <= number <= MAX_TOKENS for number in numbers):
        if merged.get("method") == "streaming":
            # Chooses nothing: the rest of the budget goes to more recent tokens.
            least, sum_ = max(1, sink + recent), f"sink {sink} + recent {recent}"
        else:
            least, sum_ = sink + recent + 1, f"sink {sink} + recent {recent} + 1 to choose"
        if 0 < budget < least:
            yield Problem(name((*path, *key)), f"at least {least} tokens ({sum_})", str(budget))


def _seed_problems(
    merged: Mapping, overrides: Mapping[str, Mapping], name: Namer
) -> Iterator[Problem]:
    methods = {
        _word(merged.get("method")),
        *(_word(own["method"]) for own in overrides.values() if "method" in own),
    }
    if merged.get("seed") is not None and methods <= _WITHOUT_SEED:
        yield Problem(
            name(("seed",)), "no seed unless a layer's method is random", shorten(merged["seed"])
        )


def _ranges(values: Any) -> Iterator[tuple[Any, range]]:
    """The well-formed ranges among `values`; schema_problems reports the others."""
    for value in values:
        try:
            yield value, parse_range(value)
        except ValueError:
            continue


def _dense_problems(
    merged: Mapping, overrides: Mapping[str, Mapping], name: Namer, is_default: bool
) -> Iterator[Problem]:
    listed = merged["dense_layers"]
    items = listed if isinstance(listed, list | tuple) else [listed]
    dense = layers_of(span for _, span in _ranges(items))
    where = "dense_layers (its default)" if is_default else "dense_layers"
    for key, span in _ranges(overrides):
        own = overrides[key]
        clash = dense[bisect_left(dense, span.start) : bisect_left(dense, span.stop)]
        if clash and own and "dense" not in own:
            yield Problem(
                name(("layers", key)),
                "no settings for a dense layer, or `dense: false` among them",
                f"layers {format_layers(clash)} in {where}",
            )


def _overlap_problems(layers: Mapping, name: Namer) -> Iterator[Problem]:
    """One problem for every range that shares layers with one that starts no later.

    Of those, the one that ends last is named: comparing all pairs would take long for thousands.
    """
    known = [(place, str(key), span) for place, (key, span) in enumerate(_ranges(layers))]
    longest = None
    for current in sorted(known, key=lambda entry: (entry[2].start, entry[0])):
        span = current[2]
        if longest is not None and span.start < longest[2].stop:
            shared = range(span.start, min(span.stop, longest[2].stop))
            (_, earlier, _), (_, later, _) = sorted((longest, current))
            yield Problem(
                name(("layers", later)),
                "each layer in one range",
                f"{shorten(earlier)} and {shorten(later)} both holding layers "
                f"{format_range(shared)}",
            )
        if longest is None or span.stop > longest[2].stop:
            longest = current
