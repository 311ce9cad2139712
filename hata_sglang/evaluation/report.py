"""Tables and plots out of the CSV files of ``eval server``, ``eval nll`` and ``eval offline``.

Everything in the report comes from the files, and so can be made anew from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hata_sglang.errors import HataError
from hata_sglang.evaluation.report_data import (
    NLL,
    OFFLINE,
    TASKS,
    Entry,
    Kind,
    Row,
    Scores,
    read_rows,
    scores,
)
from hata_sglang.evaluation.statistics import LEVEL, Estimate, average, estimate, paired

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


def show(value: Estimate, factor: float = 100.0, digits: int = 1, sign: str = "") -> str:
    """An average and its interval, such as ``93.1 [91.0, 95.2]``."""
    text = f"{value.mean * factor:{sign}.{digits}f}"
    if value.low is None or value.high is None:
        return f"{text} [n/a]"
    return f"{text} [{value.low * factor:{sign}.{digits}f}, {value.high * factor:{sign}.{digits}f}]"


def _in_order(found: dict[Entry, Scores]) -> list[Entry]:
    return sorted(found, key=lambda entry: entry.sort_key)


def _references(found: dict[Entry, Scores], reference: str) -> list[str]:
    names = {entry.name for entry in found}
    if reference not in names:
        raise HataError(
            f"--reference: expected one of {', '.join(sorted(names))}, found {reference!r}"
        )
    # Exact top-k is the ceiling of every sparse arm: shown beside whatever else is asked for.
    return list(dict.fromkeys([reference, *({"exact"} & names)]))


def _difference(entry: Entry, found: dict[Entry, Scores], reference: str, kind: Kind) -> str:
    """An entry less the reference of the same budget, or of none (dense)."""
    fits = (each for each in found if each.name == reference)
    other = next((each for each in fits if each.budget in ("", entry.budget)), None)
    if other is None or other == entry:
        return ""
    groups = paired(found[entry], found[other])
    if not groups:
        return "no common sample"
    value = estimate(groups)
    mark = f" {NO_CLAIM}" if value.has_zero else ""
    return show(value, kind.factor, kind.digits, "+") + mark


def averages(
    kind: Kind, columns: dict[str, dict[Entry, Scores]], references: Sequence[str] = ()
) -> str:
    """A line per entry: averages of every column, and what the first differs by from references."""
    first = next(iter(columns.values()))
    lines = []
    for entry in _in_order(first):
        values = [average(column[entry]) for column in columns.values()]
        cells = [entry.name, entry.bits, entry.budget, str(values[0].count)]
        cells += [show(value, kind.factor, kind.digits) for value in values]
        cells += [_difference(entry, first, reference, kind) for reference in references]
        lines.append(cells)
    less = (f"less {reference}" for reference in references)
    return table([kind.entry, "bits", "budget", kind.counted, *columns, *less], lines)


def check_same_groups(found: dict[Entry, Scores], what: str) -> list[str]:
    """Sentences about arms that were not asked everything: their averages mean something else."""
    groups = {group for own in found.values() for group in own}
    notes = []
    for entry in _in_order(found):
        missing = sorted(map(str, groups - set(found[entry])))
        if missing:
            arm = " ".join(part for part in (entry.name, entry.bits, entry.budget) if part)
            notes.append(
                f"**Not comparable by its average:** {arm} lacks {len(missing)} of "
                f"{len(groups)} {what}: {', '.join(missing)}."
            )
    return notes


def without_hard(found: dict[Entry, Scores], least: float) -> tuple[dict[Entry, Scores], str]:
    """Leave out tasks at a length that dense itself scores below `least`; also say which.

    Raises
    ------
    HataError
        If nothing is left.
    """
    dense = next((own for entry, own in found.items() if entry.name == "dense"), None)
    if dense is None:
        return found, "Nothing was left out: the files have no dense arm to judge tasks by."
    means = {group: sum(own.values()) / len(own) for group, own in dense.items()}
    hard = sorted((group for group in means if means[group] < least), key=str)
    if not hard:
        return found, ""
    kept = {
        entry: {group: own for group, own in groups.items() if group not in hard}
        for entry, groups in found.items()
    }
    kept = {entry: groups for entry, groups in kept.items() if groups}
    if not kept:
        raise HataError(f"--min-dense: expected a task that dense scores {least}, found none")
    names = ", ".join(f"{task} at {n} ({100 * means[task, n]:.1f})" for task, n in hard)
    return kept, f"Left out, because dense itself scores below {100 * least:g}: {names}."


def _task_table(found: dict[Entry, Scores], task: str) -> str:
    """One task: a line per arm, a column per length."""
    lengths = sorted({n for own in found.values() for name, n in own if name == task})
    lines = []
    for entry in _in_order(found):
        own = found[entry]
        cells = [show(average({n: own[task, n]})) if (task, n) in own else "" for n in lengths]
        if any(cells):
            lines.append([entry.name, entry.bits, entry.budget, *cells])
    return table(["arm", "bits", "budget", *(f"{n} tokens" for n in lengths)], lines)


def _tasks(found: dict[Entry, Scores], note: str, reference: str) -> list[str]:
    parts = ["## Tasks", LEGEND + " Scores are out of 100.", *([note] if note else [])]
    parts += check_same_groups(found, "tasks")
    parts.append(averages(TASKS, {"average": found}, _references(found, reference)))
    for task in sorted({task for own in found.values() for task, _ in own}):
        parts += [f"### {task}", _task_table(found, task)]
    return parts


def _nll(rows: Sequence[Row], reference: str) -> list[str]:
    found = scores(rows, NLL, "nll")
    return [
        "## Likelihood of a continuation",
        LEGEND + " In nats per token, decoded step by step; lower is better.",
        *check_same_groups(found, "texts"),
        averages(NLL, {"NLL": found}, _references(found, reference)),
    ]


def offline_section(rows: Sequence[Row]) -> list[str]:
    """Attention mass, recall and output error of each selector, over the sparse layers."""
    columns = {title: scores(rows, OFFLINE, name) for title, name in OFFLINE.values.items()}
    head = "## Offline, on captured queries and keys"
    return [head, OFFLINE_LEGEND, averages(OFFLINE, columns)]


def write_report(
    paths: Sequence[Path],
    out: Path,
    *,
    reference: str = "dense",
    min_dense: float = 0.5,
    plots: bool = True,
) -> list[Path]:
    """Write ``report.md`` and its plots.

    Parameters
    ----------
    paths : sequence of Path
        CSV files; those of one kind are taken together.
    out : Path
        Folder, made if missing.
    reference : str, default "dense"
        Arm that the others are compared with, at the same budget if it has one.
    min_dense : float, default 0.5
        Tasks at a length that dense scores below this are left out and named.
    plots : bool, default True
        Needs matplotlib.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    HataError
        If a file is of no known kind, `reference` is not in them, nothing is left of the tasks,
        or matplotlib is missing.
    """
    rows = read_rows(paths)
    tasks, note = without_hard(scores(rows["tasks"], TASKS, "score"), min_dense)
    parts = _tasks(tasks, note, reference) if tasks else []
    parts += _nll(rows["nll"], reference) if rows["nll"] else []
    parts += offline_section(rows["offline"]) if rows["offline"] else []
    if not parts:
        raise HataError("expected at least one row in the CSV files, found none")
    images: list[Path] = []
    if plots:
        from hata_sglang.evaluation.report_plots import write_plots

        images = write_plots(tasks, rows, out)
        parts += ["## Plots", *(f"![{image.stem}]({image.name})" for image in images)]
    sources = ", ".join(f"`{path.name}`" for path in paths)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "report.md"
    text = "\n\n".join(["# Evaluation", f"Made from {sources}.", *parts])
    path.write_text(text + "\n", encoding="utf-8")
    return [path, *images]
