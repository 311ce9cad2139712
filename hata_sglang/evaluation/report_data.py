"""What tables are made of: the rows of CSV files, by arm."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from hata_sglang.errors import HataError, Problem, refuse_any

#: Columns that are text, whatever they look like: empty where an arm has none of it.
TEXT = dict.fromkeys(("arm", "selector", "bits", "budget", "sample"), str)


class Entry(NamedTuple):
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


#: Numbers by entry, in the order of the tables: a column per measure, rows by group and sample.
Scores = dict[Entry, pd.DataFrame]


class Kind(NamedTuple):
    """One kind of CSV file, and how its numbers are shown.

    Attributes
    ----------
    name : str
    entry : str
        Column with the name of an `Entry`.
    group, sample : list of str
        Columns that averages are taken over first, and that tell rows of a group apart.
    values : list of str
        Columns with numbers; the first is what arms are compared by.
    counted : str
        What a row is, for the heading.
    factor : float
        Multiplies a number before it is shown.
    digits : int
        Behind the point.
    """

    name: str
    entry: str
    group: list[str]
    sample: list[str]
    values: list[str]
    counted: str
    factor: float = 1.0
    digits: int = 4

    @property
    def columns(self) -> set[str]:
        """Columns that a file of this kind has."""
        return {self.entry, "bits", "budget", *self.group, *self.sample, *self.values}


TASKS = Kind(
    *("tasks", "arm", ["task", "length"], ["seed", "sample", "index"], ["score"], "samples"),
    factor=100.0,
    digits=1,
)
NLL = Kind(
    *("nll", "arm", ["text", "context", "continuation"], ["chunk", "sample"], ["nll"], "chunks")
)
MEASURES = ["relative_mass", "mass", "recall", "output_error"]
OFFLINE = Kind("offline", "selector", ["model", "length"], ["layer", "head"], MEASURES, "heads")
KINDS = (TASKS, NLL, OFFLINE)


def read_rows(paths: Iterable[Path]) -> dict[str, pd.DataFrame]:
    """Rows of CSV files by the name of their kind; each of `KINDS` is there, if only empty.

    Raises
    ------
    Refusal
        If a file is missing, or of none of the kinds.
    """
    found: dict[str, list[pd.DataFrame]] = {kind.name: [] for kind in KINDS}
    problems = []
    for path in paths:
        try:
            rows = pd.read_csv(path, dtype=TEXT, keep_default_na=False)
        except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
            problems.append(Problem(str(path), "a readable CSV file", str(error)))
            continue
        kind = next((kind for kind in KINDS if kind.columns <= set(rows.columns)), None)
        if kind is None:
            expected = "the columns of `eval server`, `eval nll` or `eval offline`"
            problems.append(Problem(str(path), expected, ", ".join(sorted(rows.columns))))
        else:
            found[kind.name].append(rows)
    refuse_any(problems)
    return {name: pd.concat(own) if own else pd.DataFrame() for name, own in found.items()}


def scores(rows: pd.DataFrame, kind: Kind) -> Scores:
    """Numbers of files of a kind, by entry.

    Layers that serving leaves dense are left out of offline files.

    Raises
    ------
    HataError
        If a sample of an entry is there twice, or a value is no number.
    """
    if kind is OFFLINE:
        rows = rows[rows["dense"] != 1]
    entry, index = [kind.entry, "bits", "budget"], kind.group + kind.sample
    twice = rows.loc[rows.duplicated(entry + index), entry + index]
    if len(twice):
        raise HataError(f"expected each sample once, found twice: {twice.iloc[0].to_dict()}")
    try:
        rows = rows.astype(dict.fromkeys(kind.values, float)).set_index(index)
    except ValueError as error:
        expected = f"columns {', '.join(kind.values)}: expected numbers"
        raise HataError(f"{expected}, found: {error}") from None
    parts = {Entry(*key): own[kind.values] for key, own in rows.groupby(entry, sort=False)}
    return dict(sorted(parts.items(), key=lambda part: part[0].sort_key))
