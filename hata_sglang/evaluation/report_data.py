"""What tables and plots are made of: the rows of CSV files, grouped by arm."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hata_sglang.errors import HataError, Problem, refuse_any

#: Scores by group (a task at a length, a text) and sample.
Scores = dict[object, dict[object, float]]
#: Columns that tell the three kinds of file apart.
KINDS = {"tasks": ("arm", "task", "score"), "nll": ("arm", "nll"), "offline": ("selector", "mass")}
OFFLINE_COLUMNS = ("relative_mass", "mass", "recall", "output_error")


@dataclass(frozen=True, order=True)
class Entry:
    """One line of a table: an arm or selector, with what it costs.

    Attributes
    ----------
    name : str
        Arm or selector.
    bits, budget : str
        As in the CSV; empty where it has none.
    """

    name: str
    bits: str
    budget: str

    @property
    def bits_number(self) -> float | None:
        """Bits per token and KV head; None without codes."""
        return float(self.bits) if self.bits else None

    @property
    def budget_number(self) -> float | None:
        """Share of the context or tokens; None for dense."""
        return float(self.budget) if self.budget else None

    @property
    def sort_key(self) -> tuple[float, str, float]:
        """Dense first, then by budget, name and bits."""
        return (self.budget_number or 0.0, self.name, self.bits_number or 0.0)


@dataclass
class Rows:
    """Rows of all files of one kind, as dictionaries of text."""

    tasks: list[dict[str, str]] = field(default_factory=list)
    nll: list[dict[str, str]] = field(default_factory=list)
    offline: list[dict[str, str]] = field(default_factory=list)


def read_rows(paths: Iterable[Path]) -> Rows:
    """Read CSV files of any of the three kinds.

    Raises
    ------
    Refusal
        If a file is missing, or of none of the kinds.
    """
    rows, problems = Rows(), []
    for path in paths:
        try:
            with path.open(newline="", encoding="utf-8") as stream:
                reader = csv.DictReader(stream)
                columns = set(reader.fieldnames or ())
                content = list(reader)
        except (OSError, UnicodeDecodeError) as error:
            problems.append(Problem(str(path), "a readable CSV file", str(error)))
            continue
        kind = next((kind for kind, needed in KINDS.items() if columns.issuperset(needed)), None)
        if kind is None:
            expected = "the columns of `eval server`, `eval nll` or `eval offline`"
            found = ", ".join(sorted(columns)) or "an empty file"
            problems.append(Problem(str(path), expected, found))
            continue
        getattr(rows, kind).extend(content)
    refuse_any(problems)
    return rows


def _number(row: dict[str, str], column: str) -> float:
    try:
        return float(row[column])
    except (KeyError, TypeError, ValueError):
        raise HataError(
            f"column {column}: expected a number, found {row.get(column)!r} in {dict(row)}"
        ) from None


def _add(scores: Scores, group: object, sample: object, value: float, what: str) -> None:
    group_scores = scores.setdefault(group, {})
    if sample in group_scores:
        raise HataError(f"{what}: expected each sample once, found {sample} twice in {group}")
    group_scores[sample] = value


def task_scores(rows: Sequence[dict[str, str]]) -> dict[Entry, Scores]:
    """Scores by arm, then (task, length), then sample.

    Raises
    ------
    HataError
        If a sample of an arm is there twice, or a score is no number.
    """
    found: dict[Entry, Scores] = {}
    for row in rows:
        entry = Entry(row["arm"], row["bits"], row["budget"])
        group = (row["task"], int(row["length"]))
        sample = (row["seed"], row["sample"], row["index"])
        _add(found.setdefault(entry, {}), group, sample, _number(row, "score"), entry.name)
    return found


def nll_scores(rows: Sequence[dict[str, str]]) -> dict[Entry, Scores]:
    """Mean NLL by arm, then (text, context, continuation), then chunk.

    Raises
    ------
    HataError
        If a chunk of an arm is there twice, or its likelihood is no number.
    """
    found: dict[Entry, Scores] = {}
    for row in rows:
        entry = Entry(row["arm"], row["bits"], row["budget"])
        group = (row["text"], int(row["context"]), int(row["continuation"]))
        chunk = (row["chunk"], row["sample"])
        _add(found.setdefault(entry, {}), group, chunk, _number(row, "nll"), entry.name)
    return found


def offline_scores(rows: Sequence[dict[str, str]], column: str) -> dict[Entry, Scores]:
    """One column of offline files by selector, then (model, length), then (layer, head).

    Layers that serving leaves dense are left out.

    Parameters
    ----------
    rows : sequence of dict
    column : str
        Of `OFFLINE_COLUMNS`.

    Raises
    ------
    HataError
        If a head of a selector is there twice, or a value is no number.
    """
    found: dict[Entry, Scores] = {}
    for row in rows:
        if row["dense"] == "1":
            continue
        entry = Entry(row["selector"], row["bits"], row["budget"])
        group = (row["model"], int(row["length"]))
        head = (int(row["layer"]), row["head"])
        _add(found.setdefault(entry, {}), group, head, _number(row, column), entry.name)
    return found


def by_method(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Rows of offline files whose selectors go by their method, so that its bits make one line.

    Selectors that only their own name tells apart (two sets of one method with as many bits) keep
    it.
    """
    names: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        names.setdefault((row["method"], row["bits"]), set()).add(row["selector"])
    shared = {method for (method, _), own in names.items() if len(own) > 1}
    return [row if row["method"] in shared else row | {"selector": row["method"]} for row in rows]


def reference_of(entry: Entry, entries: Iterable[Entry], reference: str) -> Entry | None:
    """The entry that `entry` is compared with: of the same budget, or of none (dense)."""
    for other in entries:
        if other.name == reference and other.budget in ("", entry.budget):
            return other
    return None


def too_hard(
    scores: dict[Entry, Scores], min_dense: float
) -> tuple[list[tuple[object, float]], bool]:
    """Tasks that dense itself cannot do.

    Returns
    -------
    left_out : list of (group, dense's average)
        Groups whose average over dense's samples is below `min_dense`.
    known : bool
        Whether there is a dense arm to judge by.
    """
    dense = next((own for entry, own in scores.items() if entry.name == "dense"), None)
    if dense is None:
        return [], False
    averages = {group: sum(own.values()) / len(own) for group, own in dense.items()}
    low = [(group, value) for group, value in averages.items() if value < min_dense]
    return sorted(low, key=str), True
