"""What is wrong with single values of a configuration, in the words of the user.

`hata_sglang.config.rules` has the other source of problems: settings that do not go together.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, ValidationError

from hata_sglang.config.yaml_file import KeyPath
from hata_sglang.errors import Problem

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Namer = Callable[[KeyPath], str]


class _Repr(reprlib.Repr):
    """`repr` that looks at the first few values of anything, at a few levels."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxdict, self.maxlist = 3, 6, 8
        self.maxstring = self.maxlong = self.maxother = 80

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write integers of more than 4,300 digits.
        bits = x.bit_length()
        return super().repr_int(x, level) if bits < 1000 else f"an integer of {bits:,} bits"


_REPR = _Repr()


def shorten(value: Any, limit: int = 80) -> str:
    """`repr` of a value for a message, in at most `limit` characters; ``nothing`` for None.

    Takes no longer for a value that is huge or holds itself.
    """
    text = "nothing" if value is None else _REPR.repr(value)
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


def schema_problems(
    error: ValidationError, root: type[BaseModel], name: Namer
) -> Iterator[Problem]:
    """Problems for everything that pydantic found wrong.

    Parameters
    ----------
    error : ValidationError
        What validating `root` raised.
    root : type of BaseModel
        The schema, whose field descriptions say what is expected.
    name : callable
        Gives the text of a setting from its key path.

    Yields
    ------
    Problem
        In pydantic's order; the first of each setting, as a key that is wrong makes its value
        wrong, too.
    """
    reported = set()
    for item in error.errors(include_url=False):
        path = tuple(str(step) for step in item["loc"] if step != "[key]")
        if path not in reported:
            reported.add(path)
            yield Problem(name(path), *_expected_and_found(item, path, root))


def _expected_and_found(
    item: ErrorDetails, path: KeyPath, root: type[BaseModel]
) -> tuple[str, str]:
    is_key = bool(item["loc"]) and item["loc"][-1] == "[key]"
    found = "nothing" if item["type"] == "missing" else shorten(item["input"])
    if item["type"] == "hata":
        context = item["ctx"]
        return context["expected"], found if is_key else context.get("found", found)
    if item["type"] in ("extra_forbidden", "invalid_key"):
        return _unknown_key(path, root)
    schema = _model_at(root, path[:-1])
    field = schema.model_fields.get(path[-1]) if schema and path else None
    if item["type"] == "model_type" and field is None:
        return "a mapping of settings, such as {budget: 1024}", found
    expected = field.description if field and field.description else item["msg"]
    if item["type"] == "literal_error" and field and isinstance(item["input"], str):
        expected += f" ({nearest(item['input'], _words(field.annotation))})"
    return expected, found


def _words(annotation: Any) -> list[str]:
    """The words of a Literal, also inside an optional one."""
    args = get_args(annotation)
    return [word for arg in args for word in ([arg] if isinstance(arg, str) else _words(arg))]


def _unknown_key(path: KeyPath, root: type[BaseModel]) -> tuple[str, str]:
    key = path[-1]
    schema = _model_at(root, path[:-1])
    if schema is not root and key in root.model_fields:
        return "a per-layer key", f"{shorten(key)}, which holds for the whole model"
    valid = list(schema.model_fields) if schema else []
    return f"a known key ({nearest(key, valid)})", shorten(key)
