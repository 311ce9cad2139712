"""Tables out of the CSV files of ``eval server``, ``eval nll`` and ``eval offline``.

Everything in the report comes from the files, and so can be made anew from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from hata_sglang.errors import HataError
from hata_sglang.evaluation.report_data import (
    NLL,
    OFFLINE,
    TASKS,
    Entry,
    Kind,
    Scores,
    read_rows,
    scores,
)
from hata_sglang.evaluation.statistics import LEVEL, Estimate, estimate

#: What the other arms are compared with, as far as the files have them.
REFERENCES = ("dense", "exact")
NO_CLAIM = "~"
LEGEND = (
    f"Averages with {LEVEL:.0%} bootstrap intervals over samples, in brackets; an interval of no "
    f"width means that all samples scored alike. Differences are of the same samples; "
    f"`{NO_CLAIM}` marks those whose interval contains zero: no claim. `n/a` is an interval that "
    "one sample cannot give."
)
OFFLINE_LEGEND = (
    f"Averages over layers and KV heads, with {LEVEL:.0%} bootstrap intervals over these: they say "
    "how much heads differ, not how much texts do. Relative mass is that of exact top-k at the "
    "same budget, head by head."
)


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def show(value: Estimate, kind: Kind, sign: str = "") -> str:
    """An average and its interval, such as ``93.1 [91.0, 95.2]``."""

    def number(each: float) -> str:
        return f"{each * kind.factor:{sign}.{kind.digits}f}"

    bounds = "n/a" if value.low is None else f"{number(value.low)}, {number(value.high)}"
    return f"{number(value.mean)} [{bounds}]"


def _average(values: pd.Series, kind: Kind) -> Estimate:
    """Over the groups of numbers that are indexed by group and sample."""
    return estimate([own for _, own in values.groupby(level=kind.group, sort=False)])


def _difference(entry: Entry, found: Scores, reference: str, kind: Kind) -> str:
    """An entry less the reference of the same budget, or of none (dense)."""
    budgets = ("", entry.budget)
    fits = (each for each in found if each.name == reference and each.budget in budgets)
    other = next(fits, entry)
    if other == entry:
        return ""
    ours, theirs = (found[each][kind.values[0]] for each in (entry, other))
    same = (ours - theirs.reindex(ours.index)).dropna()
    if same.empty:
        return "no common sample"
    value = _average(same, kind)
    return show(value, kind, "+") + (f" {NO_CLAIM}" if value.has_zero else "")


def averages(kind: Kind, found: Scores) -> str:
    """A line per entry: averages of every column, and what the first differs by from references."""
    names = {entry.name for entry in found}
    # Offline everything is relative to exact top-k as it is.
    references = [name for name in REFERENCES if name in names and kind is not OFFLINE]
    lines = []
    for entry, own in found.items():
        means = [show(_average(own[column], kind), kind) for column in kind.values]
        less = [_difference(entry, found, reference, kind) for reference in references]
        lines.append([*entry, str(len(own)), *means, *less])
    heads = [column.replace("_", " ") for column in kind.values]
    less = [f"less {reference}" for reference in references]
    return table([kind.entry, "bits", "budget", kind.counted, *heads, *less], lines)


def check_same_groups(found: Scores, kind: Kind) -> list[str]:
    """Sentences about arms that were not asked everything: their averages mean something else."""
    groups = {entry: set(own.index.droplevel(kind.sample)) for entry, own in found.items()}
    every, notes = set().union(*groups.values()), []
    for entry, own in groups.items():
        if missing := sorted(map(str, every - own)):
            notes.append(
                f"**Not comparable by its average:** {' '.join(filter(None, entry))} lacks "
                f"{len(missing)} of {len(every)} {kind.name}: {', '.join(missing)}."
            )
    return notes


def without_hard(found: Scores, least: float) -> tuple[Scores, str]:
    """Leave out tasks at a length that dense itself scores below `least`; also say which.

    Raises
    ------
    HataError
        If nothing is left.
    """
    dense = next((own for entry, own in found.items() if entry.name == "dense"), None)
    if dense is None:
        return found, "Nothing was left out: the files have no dense arm to judge tasks by."
    means = dense["score"].groupby(level=TASKS.group).mean()
    hard = means[means < least]
    if hard.empty:
        return found, ""
    kept = {
        entry: own[~own.index.droplevel(TASKS.sample).isin(hard.index)]
        for entry, own in found.items()
    }
    kept = {entry: own for entry, own in kept.items() if len(own)}
    if not kept:
        raise HataError(f"--min-dense: expected a task that dense scores {least}, found none")
    names = ", ".join(f"{task} at {n} ({100 * mean:.1f})" for (task, n), mean in hard.items())
    return kept, f"Left out, because dense itself scores below {100 * least:g}: {names}."


def _task_table(found: Scores, task: str) -> str:
    """One task: a line per arm, a column per length."""
    cells: dict[Entry, dict[int, str]] = {}
    for entry, own in found.items():
        for (name, length), part in own["score"].groupby(level=TASKS.group):
            if name == task:
                cells.setdefault(entry, {})[length] = show(_average(part, TASKS), TASKS)
    lengths = sorted({length for own in cells.values() for length in own})
    lines = [[*entry, *(own.get(n, "") for n in lengths)] for entry, own in cells.items()]
    return table(["arm", "bits", "budget", *(f"{n} tokens" for n in lengths)], lines)


def _tasks(rows: pd.DataFrame, min_dense: float) -> list[str]:
    found, note = without_hard(scores(rows, TASKS), min_dense)
    parts = ["## Tasks", LEGEND + " Scores are out of 100.", *([note] if note else [])]
    parts += [*check_same_groups(found, TASKS), averages(TASKS, found)]
    for task in sorted({task for own in found.values() for task in own.index.unique("task")}):
        parts += [f"### {task}", _task_table(found, task)]
    return parts


def _nll(rows: pd.DataFrame) -> list[str]:
    found = scores(rows, NLL)
    return [
        "## Likelihood of a continuation",
        LEGEND + " In nats per token, decoded step by step; lower is better.",
        *check_same_groups(found, NLL),
        averages(NLL, found),
    ]


def offline_section(rows: pd.DataFrame) -> list[str]:
    """Attention mass, recall and output error of each selector, over the sparse layers."""
    head = "## Offline, on captured queries and keys"
    return [head, OFFLINE_LEGEND, averages(OFFLINE, scores(rows, OFFLINE))]


def write_report(paths: Sequence[Path], out: Path, *, min_dense: float = 0.5) -> Path:
    """Write ``report.md``.

    Parameters
    ----------
    paths : sequence of Path
        CSV files; those of one kind are taken together.
    out : Path
        Folder, made if missing.
    min_dense : float, default 0.5
        Tasks at a length that dense scores below this are left out and named.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    HataError
        If a file is of no known kind, or nothing is left of the tasks.
    """
    rows = read_rows(paths)
    parts = _tasks(rows["tasks"], min_dense) if len(rows["tasks"]) else []
    parts += _nll(rows["nll"]) if len(rows["nll"]) else []
    parts += offline_section(rows["offline"]) if len(rows["offline"]) else []
    if not parts:
        raise HataError("expected at least one row in the CSV files, found none")
    sources = ", ".join(f"`{path.name}`" for path in paths)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "report.md"
    text = "\n\n".join(["# Evaluation", f"Made from {sources}.", *parts])
    path.write_text(text + "\n", encoding="utf-8")
    return path
