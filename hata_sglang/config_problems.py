"""What is wrong with single values of a configuration, in the words of the user.

`hata_sglang.config_rules` has the other source of problems: settings that do not go together.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from hata_sglang.errors import Problem
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
