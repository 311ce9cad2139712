"""``--option key=value``: the fields of a method's recipe, checked by pydantic."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from hata_sglang.config.problems import nearest
from hata_sglang.errors import Problem, refuse_any

R = TypeVar("R")


def option_fields(recipe_type: type) -> dict[str, dict[str, Any]]:
    """JSON schemas of a recipe's options.

    Parameters
    ----------
    recipe_type : type
        A dataclass. A field that is a dataclass itself gives ``field.name`` for each of its own.

    Returns
    -------
    dict of str to dict
    """
    schema = TypeAdapter(recipe_type).json_schema()
    found: dict[str, dict[str, Any]] = {}
    for name, field in schema["properties"].items():
        if "$ref" in field:
            inner = schema["$defs"][field["$ref"].rpartition("/")[2]]["properties"]
            found |= {f"{name}.{own}": part for own, part in inner.items()}
        else:
            found[name] = field
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
    texts: dict[str, str] = {}
    for option in options:
        name, separator, text = option.partition("=")
        setting = f"--option {name}"
        if not separator:
            problems.append(Problem(setting, f"{name}=VALUE", repr(option)))
        elif name not in fields:
            expected = f"a known option ({nearest(name, fields)})"
            problems.append(Problem(setting, expected, "an unknown one"))
        elif name in texts:
            problems.append(Problem(setting, "one value", f"{texts[name]} and {text}"))
        else:
            texts[name] = text
    nested: dict[str, Any] = {}
    for name, text in texts.items():
        outer, _, inner = name.rpartition(".")
        (nested.setdefault(outer, {}) if outer else nested)[inner] = _value(text)
    try:
        recipe = TypeAdapter(recipe_type).validate_python(nested)
    except ValidationError as error:
        places = [".".join(map(str, part["loc"])) for part in error.errors()]
        problems += [
            Problem(f"--option {name}", describe(fields[name]), repr(text))
            for name, text in texts.items()
            # Behind its name, a place may say which type of several did not fit.
            if any(f"{place}.".startswith(f"{name}.") for place in places)
        ]
    refuse_any(problems)
    return recipe


def describe(schema: dict[str, Any]) -> str:
    """The values that a JSON schema admits, in words."""
    if "enum" in schema:
        return " or ".join(map(str, schema["enum"]))
    if "anyOf" in schema:
        return " or ".join(map(describe, schema["anyOf"]))
    names = {
        "integer": "an integer",
        "number": "a number",
        "boolean": "true or false",
        "null": "none",
    }
    return names.get(schema["type"], "text")


def option_lines(recipe_type: type) -> list[str]:
    """One line per option: name, what it takes, its default."""
    lines = []
    for name, schema in option_fields(recipe_type).items():
        default = "none" if schema["default"] is None else schema["default"]
        lines.append(f"{name}: {describe(schema)} (default {default})")
    return lines


def _value(text: str) -> Any:
    # Of the texts that pydantic takes for numbers, choices of numbers want theirs as one.
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    return None if text == "none" else text
