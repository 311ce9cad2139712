"""What tables and plots are made of: the rows of CSV files, grouped by arm."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hata_sglang.errors import HataError, Problem, refuse_any

Row = dict[str, str]
#: Scores by group (a task at a length, a text) and sample.
Scores = dict[tuple, dict[tuple, float]]


@dataclass(frozen=True, order=True)
class Entry:
    """One line of a table: an arm or selector, with what it costs.

    Attributes
    ----------
    name : str
        Arm or selector.
    bits, budget : str
        As in the CSV: bits per token and KV head, share of the context or tokens. Empty where it
        has none.
    """

    name: str
    bits: str
    budget: str

    @property
    def sort_key(self) -> tuple[float, str, float]:
        """Dense first, then by budget, name and bits."""
        return (float(self.budget or 0), self.name, float(self.bits or 0))


@dataclass(frozen=True)
class Kind:
    """One kind of CSV file, and how its numbers are shown.

    Attributes
    ----------
    name : str
    entry : str
        Column with the name of an `Entry`.
    group, sample : tuple of str
        Columns that averages are taken over first, and that tell rows of a group apart.
    values : dict of str to str
        Columns with numbers, by heading; the first is what arms are compared by.
    counted : str
        What a row is, for the heading.
    factor : float
        Multiplies a number before it is shown.
    digits : int
        Behind the point.
    """

    name: str
    entry: str
    group: tuple[str, ...]
    sample: tuple[str, ...]
    values: dict[str, str]
    counted: str
    factor: float
    digits: int

    @property
    def columns(self) -> set[str]:
        """Columns that a file of this kind has."""
        own = (self.entry, "bits", "budget", *self.group, *self.sample, *self.values.values())
        return set(own)


TASKS = Kind(
    *("tasks", "arm", ("task", "length"), ("seed", "sample", "index")),
    *({"average": "score"}, "samples", 100.0, 1),
)
NLL = Kind(
    *("nll", "arm", ("text", "context", "continuation"), ("chunk", "sample")),
    *({"NLL": "nll"}, "chunks", 1.0, 4),
)
OFFLINE = Kind(
    *("offline", "selector", ("model", "length"), ("layer", "head")),
    {name.replace("_", " "): name for name in ("relative_mass", "mass", "recall", "output_error")},
    *("heads", 1.0, 4),
)
KINDS = (TASKS, NLL, OFFLINE)


def read_rows(paths: Iterable[Path]) -> dict[str, list[Row]]:
    """Rows of CSV files by the name of their kind; each of `KINDS` is there, if only empty.

    Raises
    ------
    Refusal
        If a file is missing, or of none of the kinds.
    """
    rows: dict[str, list[Row]] = {kind.name: [] for kind in KINDS}
    problems = []
    for path in paths:
        try:
            with path.open(newline="", encoding="utf-8") as stream:
                reader = csv.DictReader(stream)
                columns, content = set(reader.fieldnames or ()), list(reader)
        except (OSError, UnicodeDecodeError) as error:
            problems.append(Problem(str(path), "a readable CSV file", str(error)))
            continue
        kind = next((kind for kind in KINDS if kind.columns <= columns), None)
        if kind is None:
            expected = "the columns of `eval server`, `eval nll` or `eval offline`"
            found = ", ".join(sorted(columns)) or "an empty file"
            problems.append(Problem(str(path), expected, found))
        else:
            rows[kind.name] += content
    refuse_any(problems)
    return rows


def scores(rows: Sequence[Row], kind: Kind, column: str) -> dict[Entry, Scores]:
    """One column of files of a kind, by entry, group and sample.

    Layers that serving leaves dense are left out of offline files.

    Raises
    ------
    HataError
        If a sample of an entry is there twice, or a value is no number.
    """
    found: dict[Entry, Scores] = {}
    for row in rows:
        if kind is OFFLINE and row["dense"] == "1":
            continue
        entry = Entry(row[kind.entry], row["bits"], row["budget"])
        parts = (row[name] for name in kind.group)
        group = tuple(int(part) if part.isdecimal() else part for part in parts)
        sample = tuple(row[name] for name in kind.sample)
        own = found.setdefault(entry, {}).setdefault(group, {})
        if sample in own:
            raise HataError(
                f"{entry.name}: expected each sample once, found {sample} twice in {group}"
            )
        try:
            own[sample] = float(row[column])
        except (TypeError, ValueError):
            raise HataError(
                f"column {column}: expected a number, found {row[column]!r} in {row}"
            ) from None
    return found


def by_method(rows: Sequence[Row]) -> list[Row]:
    """Rows of offline files whose selectors go by their method, so that its bits make one line.

    Selectors that only their own name tells apart (two sets of one method with as many bits) keep
    it.
    """
    names: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        names.setdefault((row["method"], row["bits"]), set()).add(row["selector"])
    shared = {method for (method, _), own in names.items() if len(own) > 1}
    return [row if row["method"] in shared else row | {"selector": row["method"]} for row in rows]
