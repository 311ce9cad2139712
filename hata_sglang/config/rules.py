"""What is wrong between settings of a configuration, each of which may be fine alone.

The rules read the raw mapping and skip what is malformed, so that one run reports it along with
what `hata_sglang.config.problems` finds in single values.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import Any

from hata_sglang.config.budget import MAX_TOKENS
from hata_sglang.config.layer_ranges import format_layers, format_range, layers_of, parse_range
from hata_sglang.config.problems import Namer, shorten
from hata_sglang.config.yaml_file import KeyPath
from hata_sglang.errors import Problem
from hata_sglang.methods import MAX_BITS, WORD_BITS, Method, choice, method_names, methods


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
        yield from _level_problems(("layers", key), own, level, name)
    yield from _seed_problems(merged, overrides, name)
    yield from _traffic_problems(merged, overrides, name)
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
    method = _method(merged.get("method"))
    names_method = not path or "method" in own
    if method is not None:
        yield from _weights_problems(path, own, method, name)
        if names_method or "bits" in own:
            yield from _bits_problems(path, own, merged, method, name)
    if names_method or own.keys() & {"left_out", "recent"}:
        yield from _left_out_problems(path, merged, method, name)
    if names_method or own.keys() & {"budget", "sink", "recent"}:
        yield from _floor_problems(path, merged, method, name)


def mean_obstacle(method: Method | None, recent: Any, attend: Any) -> str | None:
    """What keeps the mean of the values left out from a layer, for messages; None: nothing."""
    if method is not None and not method.trained:
        return f"method {method.name}, which no set weighs it for"
    if recent == 0:
        return "recent 0, as steps sum the values of tokens that are always kept"
    if attend == "flashinfer":
        return "attend flashinfer, which has no place for it"
    return None


def _left_out_problems(
    path: KeyPath, merged: Mapping, method: Method | None, name: Namer
) -> Iterator[Problem]:
    if merged.get("left_out") == "mean":
        obstacle = mean_obstacle(method, merged["recent"], merged.get("attend"))
        if obstacle:
            yield Problem(name((*path, "left_out")), f"auto or none with {obstacle}", "mean")


def _method(value: Any) -> Method | None:
    """The method of that name; what names none is reported as a single value."""
    return methods().get(value) if isinstance(value, str) else None


def _weights_problems(
    path: KeyPath, own: Mapping, method: Method, name: Namer
) -> Iterator[Problem]:
    if not method.trained and own.get("weights") is not None:
        expected = f"no weights with method {method.name}"
        yield Problem(name((*path, "weights")), expected, shorten(own["weights"]))


def _bits_problems(
    path: KeyPath, own: Mapping, merged: Mapping, method: Method, name: Namer
) -> Iterator[Problem]:
    if not method.coded:
        if own.get("bits") is not None:
            expected = f"no bits with method {method.name}, which keeps no codes"
            yield Problem(name((*path, "bits")), expected, shorten(own["bits"]))
        return
    bits = merged.get("bits")
    # What is malformed for every method is reported as a single value.
    if isinstance(bits, int) and method.max_bits < bits <= MAX_BITS and bits % WORD_BITS == 0:
        expected = f"a multiple of 32 from 32 to {method.max_bits} with method {method.name}"
        yield Problem(name((*path, "bits")), expected, str(bits))


def _floor_problems(
    path: KeyPath, merged: Mapping, method: Method | None, name: Namer
) -> Iterator[Problem]:
    budget, sink, recent = merged.get("budget"), merged["sink"], merged["recent"]
    key: KeyPath = ("budget",)
    if isinstance(budget, Mapping):
        budget, key = budget.get("min"), ("budget", "min")
    numbers = (budget, sink, recent)
    # Others are reported as single values.
    if all(type(number) is int and 0 <= number <= MAX_TOKENS for number in numbers):
        if method is not None and method.ranks == "positions":
            # Chooses nothing: the rest of the budget goes to more recent tokens.
            least, sum_ = max(1, sink + recent), f"sink {sink} + recent {recent}"
        else:
            least, sum_ = sink + recent + 1, f"sink {sink} + recent {recent} + 1 to choose"
        if 0 < budget < least:
            yield Problem(name((*path, *key)), f"at least {least} tokens ({sum_})", str(budget))


def _seed_problems(
    merged: Mapping, overrides: Mapping[str, Mapping], name: Namer
) -> Iterator[Problem]:
    if merged.get("seed") is None:
        return
    named = _named_methods(merged, overrides)
    # A method that is none may have been meant as one with a seed.
    if all(method is not None and not method.seeded for method in named):
        seeded = choice(method_names(seeded=True))
        expected = f"no seed unless a layer's method is {seeded}"
        yield Problem(name(("seed",)), expected, shorten(merged["seed"]))


def _traffic_problems(
    merged: Mapping, overrides: Mapping[str, Mapping], name: Namer
) -> Iterator[Problem]:
    named = _named_methods(merged, overrides)
    if merged.get("traffic") is not None and all(m is not None and not m.trained for m in named):
        trained = choice(method_names(trained=True))
        expected = f"none unless a layer's method is {trained}, whose weights can be trained on it"
        yield Problem(name(("traffic",)), expected, shorten(merged["traffic"]))


def _named_methods(merged: Mapping, overrides: Mapping[str, Mapping]) -> list[Method | None]:
    """The methods of the whole model and of layers that name their own; None for what is none."""
    levels = (merged, *overrides.values())
    return [_method(level["method"]) for level in levels if "method" in level]


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
    """One problem for every range that shares layers with a sound one before it."""
    holders: dict[int, tuple[str, range]] = {}
    for key, span in _ranges(layers):
        shared = next((layer for layer in span if layer in holders), None)
        if shared is None:
            holders.update(dict.fromkeys(span, (str(key), span)))
            continue
        earlier, held = holders[shared]
        both = range(shared, min(span.stop, held.stop))
        yield Problem(
            name(("layers", str(key))),
            "each layer in one range",
            f"{shorten(earlier)} and {shorten(str(key))} both holding layers {format_range(both)}",
        )
