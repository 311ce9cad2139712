"""Reading one YAML mapping, with the line of every key and every mistake reported."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hata_sglang.config.yaml_loader import MAX_BYTES, KeyPath, load_document
from hata_sglang.errors import Problem, Refusal
from hata_sglang.files import read_regular

__all__ = ["KeyPath", "Source", "read_mapping"]


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
    content = read_regular(path, "a YAML file", MAX_BYTES)
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        found = f"byte {error.start} that is not UTF-8"
        raise Refusal.of(str(path), "a UTF-8 text file", found) from None

    value, lines, duplicates = load_document(text, path)
    if not isinstance(value, dict):
        found = "an empty file" if value is None else f"a {type(value).__name__}"
        raise Refusal.of(str(path), "a mapping of settings (method, budget, ...)", found)

    source = Source(origin=str(path), lines=lines)
    problems = [
        Problem(
            f"{'.'.join(key)} ({path}:{second})",
            "each key once",
            f"the key again (first on line {first})",
        )
        for key, first, second in duplicates
    ]
    return value, source, problems
