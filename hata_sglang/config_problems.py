"""What is wrong with a configuration, in the words of the user.

Two sources of problems: what pydantic finds in single values, and rules that tie several settings
together. The rules read the raw mapping and skip what is malformed, so that one run reports both.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from hata_sglang.errors import Problem
from hata_sglang.layer_ranges import format_layers, parse_range
from hata_sglang.yaml_file import KeyPath

Namer = Callable[[KeyPath], str]


def shorten(value: Any, limit: int = 80) -> str:
    """`repr` of a value for a message, cut at `limit` characters; ``nothing`` for None."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def nearest(word: str, valid: Iterable[str]) -> str:
    """``did you mean 'x'?`` for the valid name nearest to `word`, or the list of all.

    Parameters
    ----------
    word : str
        What the user wrote.
    valid : iterable of str
        What could have been written.

    Returns
    -------
    str
    """
    names = list(valid)
    close = difflib.get_close_matches(word.lower(), names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(names)}"


def _model_at(root: type[BaseModel], path: KeyPath) -> type[BaseModel] | None:
    """The schema whose keys live below `path`; None where there are no keys of ours."""
    model: type[BaseModel] | None = root
    steps = list(path)
    while steps and model is not None:
        step = steps.pop(0)
        if step not in model.model_fields:
            return None
        candidates = [model.model_fields[step].annotation]
        found = None
        while candidates:
            kind = candidates.pop()
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found = kind
            candidates.extend(get_args(kind))
        if step == "layers" and steps:
            steps.pop(0)  # the range, which is data and not a name of the schema
        model = found
    return model


def schema_problems(error: ValidationError, root: type[BaseModel], name: Namer) -> list[Problem]:
    """Problems for everything that pydantic found wrong.

    Parameters
    ----------
    error : ValidationError
        What validating `root` raised.
    root : type of BaseModel
        The schema, whose field descriptions say what is expected.
    name : callable
        Gives the text of a setting from its key path.

    Returns
    -------
    list of Problem
        One per error, in pydantic's order.
    """
    problems = []
    for item in error.errors(include_url=False):
        is_key = bool(item["loc"]) and item["loc"][-1] == "[key]"
        path = tuple(str(step) for step in item["loc"] if step != "[key]")
        context = item.get("ctx", {})
        if item["type"] == "hata":
            path += (context["key"],) if "key" in context else ()
            expected, found = context["expected"], context.get("found", shorten(item["input"]))
        elif item["type"] == "extra_forbidden":
            expected, found = _unknown_key(path, root)
        else:
            schema = _model_at(root, path[:-1])
            field = schema.model_fields.get(path[-1]) if schema and path else None
            expected = field.description if field and field.description else item["msg"]
            found = "nothing" if item["type"] == "missing" else shorten(item["input"])
            if item["type"] == "literal_error" and field and isinstance(item["input"], str):
                expected += f" ({nearest(item['input'], _words(field.annotation))})"
        if is_key:
            found = shorten(item["input"])
        problems.append(Problem(name(path), expected, found))
    return problems


def _words(annotation: Any) -> list[str]:
    """The words of a Literal, also inside an optional one."""
    args = get_args(annotation)
    return [word for arg in args for word in ([arg] if isinstance(arg, str) else _words(arg))]


def _unknown_key(path: KeyPath, root: type[BaseModel]) -> tuple[str, str]:
    key = path[-1]
    schema = _model_at(root, path[:-1])
    if schema is not root and key in root.model_fields:
        return "a per-layer key", f"{key!r}, which holds for the whole model"
    return f"a known key ({nearest(key, list(schema.model_fields) if schema else [])})", f"{key!r}"


def rule_problems(
    data: Mapping[str, Any], defaults: Mapping[str, Any], name: Namer
) -> list[Problem]:
    """Problems between settings, each of which may be fine alone.

    Parameters
    ----------
    data : mapping
        The raw settings, possibly malformed.
    defaults : mapping
        Values of the settings that `data` leaves out.
    name : callable
        Gives the text of a setting from its key path.

    Returns
    -------
    list of Problem
        Empty when the settings go together, or are too malformed to tell.
    """
    merged = {**defaults, **data}
    layers = merged["layers"] if isinstance(merged["layers"], Mapping) else {}
    overrides = {str(key): value for key, value in layers.items() if isinstance(value, Mapping)}
    problems = list(_level_problems((), data, merged, name))
    for key, own in overrides.items():
        given = {setting: value for setting, value in own.items() if value is not None}
        problems += _level_problems(("layers", key), own, {**merged, **given}, name)
    problems += _seed_problems(merged, overrides, name)
    problems += _dense_problems(merged, overrides, name, is_default="dense_layers" not in data)
    problems += _overlap_problems(layers, name)
    return problems


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
    method = merged.get("method")
    if method == "hata" and merged.get("weights") is None and (not path or "method" in own):
        yield Problem(
            name((*path, "weights")),
            "trained weights for method hata: a path, or a name that `hata-sglang weights` lists",
            "nothing",
        )
    if method in ("exact", "random") and own.get("weights") is not None:
        yield Problem(
            name((*path, "weights")), f"no weights with method {method}", shorten(own["weights"])
        )
    if method == "exact" and own.get("bits") is not None:
        yield Problem(
            name((*path, "bits")),
            "no bits with method exact, which ranks by the true scores and keeps no codes",
            shorten(own["bits"]),
        )
    if not path or own.keys() & {"budget", "sink", "recent"}:
        yield from _floor_problems(path, merged, name)


def _floor_problems(path: KeyPath, merged: Mapping, name: Namer) -> Iterator[Problem]:
    budget, sink, recent = merged.get("budget"), merged["sink"], merged["recent"]
    key: KeyPath = ("budget",)
    if isinstance(budget, Mapping):
        budget, key = budget.get("min"), ("budget", "min")
    numbers = (budget, sink, recent)
    if all(
        isinstance(number, int) and not isinstance(number, bool) and number >= 0
        for number in numbers
    ):
        least = sink + recent + 1
        if 0 < budget < least:
            expected = f"at least {least} tokens (sink {sink} + recent {recent} + 1 to choose)"
            yield Problem(name((*path, *key)), expected, str(budget))


def _seed_problems(
    merged: Mapping, overrides: Mapping[str, Mapping], name: Namer
) -> Iterator[Problem]:
    methods = {
        merged.get("method"),
        *(own["method"] for own in overrides.values() if "method" in own),
    }
    if merged.get("seed") is not None and methods <= {"hata", "exact"}:
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
    dense = {layer for _, layers in _ranges(items) for layer in layers}
    for key, layers in _ranges(overrides):
        own = overrides[key]
        clash = dense & set(layers)
        if clash and own and "dense" not in own:
            where = "dense_layers (its default)" if is_default else "dense_layers"
            yield Problem(
                name(("layers", key)),
                "no settings for a dense layer, or `dense: false` among them",
                f"layers {format_layers(clash)} in {where}",
            )


def _overlap_problems(layers: Mapping, name: Namer) -> Iterator[Problem]:
    known = list(_ranges(layers))
    for index, (key, span) in enumerate(known):
        for earlier, other in known[:index]:
            shared = set(span) & set(other)
            if shared:
                both = f"{str(earlier)!r} and {str(key)!r}"
                yield Problem(
                    name(("layers", str(key))),
                    "each layer in one range",
                    f"{both} both holding layers {format_layers(shared)}",
                )
