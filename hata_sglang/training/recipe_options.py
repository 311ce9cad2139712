"""``--option key=value``: the fields of a method's recipe, typed by its dataclass."""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from hata_sglang.errors import Problem, refuse_any

R = TypeVar("R")


def option_fields(recipe_type: type) -> dict[str, Any]:
    """Names and types of a recipe's options.

    Parameters
    ----------
    recipe_type : type
        A dataclass. A field that is a dataclass itself gives ``field.name`` for each of its own.

    Returns
    -------
    dict of str to type
    """
    found: dict[str, Any] = {}
    hints = get_type_hints(recipe_type)
    for field in dataclasses.fields(recipe_type):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            inner = option_fields(hint)
            found |= {f"{field.name}.{name}": kind for name, kind in inner.items()}
        else:
            found[field.name] = hint
    return found


def make_recipe(recipe_type: type[R], options: Sequence[str]) -> R:
    """Build a recipe from ``key=value`` texts; what is not named keeps its default.

    Parameters
    ----------
    recipe_type : type
    options : sequence of str

    Raises
    ------
    Refusal
        With every option that is unknown (the nearest name is given), named
        twice, without a value, or of another type.
    """
    fields = option_fields(recipe_type)
    problems: list[Problem] = []
    values: dict[str, Any] = {}
    for option in options:
        name, separator, text = option.partition("=")
        setting = f"--option {name}"
        if not separator:
            problems.append(Problem(setting, f"{name}=VALUE", repr(option)))
        elif name not in fields:
            problems.append(Problem(setting, _nearest(name, fields), "an unknown option"))
        elif name in values:
            problems.append(Problem(setting, "one value", f"{values[name]} and {text}"))
        else:
            try:
                values[name] = _parse(fields[name], text)
            except ValueError:
                problems.append(Problem(setting, describe(fields[name]), repr(text)))
    refuse_any(problems)
    return _build(recipe_type, values)


def describe(hint: Any) -> str:
    """The values that a type admits, in words."""
    origin = get_origin(hint)
    if origin is Literal:
        return " or ".join(str(choice) for choice in get_args(hint))
    if origin in (Union, types.UnionType):
        return " or ".join(describe(part) for part in get_args(hint))
    names = {int: "an integer", float: "a number", bool: "true or false", type(None): "none"}
    return names.get(hint, "text")


def option_lines(recipe_type: type) -> list[str]:
    """One line per option: name, what it takes, its default."""
    default = recipe_type()
    lines = []
    for name, hint in option_fields(recipe_type).items():
        value: Any = default
        for part in name.split("."):
            value = getattr(value, part)
        shown = "none" if value is None else str(value).lower() if hint is bool else value
        lines.append(f"{name}: {describe(hint)} (default {shown})")
    return lines


def _nearest(name: str, fields: dict[str, Any]) -> str:
    close = difflib.get_close_matches(name, fields, n=1)
    hint = f"{close[0]!r} (the nearest name), or another" if close else "one"
    return f"{hint} of {', '.join(fields)}"


def _parse(hint: Any, text: str) -> Any:
    origin = get_origin(hint)
    if origin is Literal:
        for choice in get_args(hint):
            if text == str(choice):
                return choice
        raise ValueError(text)
    if origin in (Union, types.UnionType):
        parts = get_args(hint)
        if type(None) in parts and text == "none":
            return None
        return _parse(next(part for part in parts if part is not type(None)), text)
    if hint is bool:
        if text not in ("true", "false"):
            raise ValueError(text)
        return text == "true"
    return hint(text)


def _build(recipe_type: type[R], values: dict[str, Any]) -> R:
    hints = get_type_hints(recipe_type)
    own = {name: value for name, value in values.items() if "." not in name}
    for name, hint in hints.items():
        inner = {k.partition(".")[2]: v for k, v in values.items() if k.startswith(f"{name}.")}
        if inner:
            own[name] = _build(hint, inner)
    return recipe_type(**own)
