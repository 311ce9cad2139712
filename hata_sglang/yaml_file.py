"""Reading one YAML mapping, with the line of every key and every mistake reported."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hata_sglang.errors import Problem, Refusal

KeyPath = tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """Where a configuration came from, to name it in messages.

    Attributes
    ----------
    origin : str
        File path, or a word such as ``HATA_CONFIG``; empty when unknown.
    lines : dict of KeyPath to int
        Line of each key, counted from 1.
    """

    # Not compared: two files with the same settings are the same configuration.
    origin: str = field(default="", compare=False)
    lines: dict[KeyPath, int] = field(default_factory=dict, compare=False)

    def name(self, path: KeyPath) -> str:
        """Text for a setting: its dotted key, then the file and the line where known."""
        key = ".".join(path)
        if not self.origin:
            return key
        line = next(
            (self.lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self.lines), None
        )
        where = self.origin if line is None else f"{self.origin}:{line}"
        return f"{key} ({where})" if key else where


class _Loader(yaml.SafeLoader):
    """SafeLoader that keeps key lines and notes duplicate keys, which PyYAML drops silently."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.lines: dict[KeyPath, int] = {}
        self.duplicates: list[tuple[KeyPath, int, int]] = []

    def note(self, node: yaml.Node, path: KeyPath, seen: frozenset[int] = frozenset()) -> None:
        """Walk the node tree below `node`; `seen` stops at an alias to an enclosing mapping."""
        if not isinstance(node, yaml.MappingNode) or id(node) in seen:
            return
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            is_merge = key_node.tag == "tag:yaml.org,2002:merge"
            if is_merge or not isinstance(key_node, yaml.ScalarNode):
                continue
            key = (*path, key_node.value)
            # The last value of a duplicate key is the one that counts, so its line does too.
            self.lines[key] = line = key_node.start_mark.line + 1
            if key_node.value in first:
                self.duplicates.append((key, first[key_node.value], line))
            first.setdefault(key_node.value, line)
            self.note(value_node, key, seen | {id(node)})


def _syntax_problem(path: Path, error: yaml.YAMLError) -> Problem:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    where = f"{path}:{mark.line + 1}" if mark else str(path)
    text = getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable YAML"
    if "'\\t'" in text:
        return Problem(where, "indentation with spaces (YAML allows no tabs)", "a tab")
    return Problem(where, "valid YAML", text)


def read_mapping(path: Path) -> tuple[dict[Any, Any], Source, list[Problem]]:
    """Read the one mapping that a YAML file must hold.

    Parameters
    ----------
    path : Path
        The file, UTF-8.

    Returns
    -------
    mapping : dict
        Keys and values as YAML has them; of a duplicate key the last value.
    source : Source
        File name and lines, for messages about the values.
    problems : list of Problem
        Duplicate keys. Returned rather than raised, so that the caller can report what is
        wrong with the values along with them.

    Raises
    ------
    Refusal
        If nothing can be said about the values: missing or unreadable file, invalid YAML, an
        empty file, or something else than a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise Refusal([Problem(str(path), "a YAML file", "no such file")]) from None
    except UnicodeDecodeError as error:
        raise Refusal(
            [Problem(str(path), "a UTF-8 text file", f"byte {error.start} that is not UTF-8")]
        ) from None
    except OSError as error:
        raise Refusal(
            [Problem(str(path), "a readable YAML file", error.strerror or str(error))]
        ) from None

    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None:
            loader.note(node, ())
        value = None if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        raise Refusal([_syntax_problem(path, error)]) from None
    if value is None:
        raise Refusal(
            [Problem(str(path), "a mapping of settings (method, budget, ...)", "an empty file")]
        )
    if not isinstance(value, dict):
        found = f"a {type(value).__name__}"
        raise Refusal([Problem(str(path), "a mapping of settings (method, budget, ...)", found)])

    source = Source(origin=str(path), lines=loader.lines)
    problems = [
        Problem(
            f"{'.'.join(key)} ({path}:{second})",
            "each key once",
            f"the key again (first on line {first})",
        )
        for key, first, second in loader.duplicates
    ]
    return value, source, problems
