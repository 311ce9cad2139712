"""Tables and plots out of the CSV files of ``eval server``, ``eval nll`` and ``eval offline``.

Everything in the report comes from the files, and so can be made anew from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hata_sglang.errors import HataError
from hata_sglang.evaluation.report_data import (
    OFFLINE_COLUMNS,
    Entry,
    Rows,
    Scores,
    nll_scores,
    offline_scores,
    read_rows,
    reference_of,
    task_scores,
    too_hard,
)
from hata_sglang.evaluation.statistics import LEVEL, Estimate, estimate, paired

NO_CLAIM = "~"
LEGEND = (
    f"Averages with {LEVEL:.0%} bootstrap intervals over samples, in brackets; an interval of no "
    f"width means that all samples scored alike. Differences are of the same samples; "
    f"`{NO_CLAIM}` marks those whose interval contains zero: no claim. `n/a` is an interval that "
    "one sample cannot give."
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


def _values(scores: Scores) -> list[list[float]]:
    return [list(own.values()) for own in scores.values()]


def _difference(
    entry: Entry, scores: dict[Entry, Scores], reference: str, factor: float, digits: int
) -> str:
    other = reference_of(entry, scores, reference)
    if other is None or other == entry:
        return ""
    groups = paired(scores[entry], scores[other])
    if not groups:
        return "no common sample"
    value = estimate(groups)
    mark = f" {NO_CLAIM}" if value.has_zero else ""
    return show(value, factor, digits, "+") + mark


def _average_lines(
    scores: dict[Entry, Scores], references: Sequence[str], factor: float, digits: int
) -> list[list[str]]:
    lines = []
    for entry in sorted(scores, key=lambda each: each.sort_key):
        value = estimate(_values(scores[entry]))
        differences = [
            _difference(entry, scores, reference, factor, digits) for reference in references
        ]
        cells = [entry.name, entry.bits, entry.budget, str(value.count)]
        lines.append([*cells, show(value, factor, digits), *differences])
    return lines


def check_same_groups(scores: dict[Entry, Scores], what: str) -> list[str]:
    """Sentences about arms that were not asked everything: their averages mean something else."""
    groups = {group for own in scores.values() for group in own}
    notes = []
    for entry in sorted(scores, key=lambda each: each.sort_key):
        missing = sorted(map(str, groups - set(scores[entry])))
        if missing:
            arm = " ".join(part for part in (entry.name, entry.bits, entry.budget) if part)
            notes.append(
                f"**Not comparable by its average:** {arm} lacks {len(missing)} of "
                f"{len(groups)} {what}: {', '.join(missing)}."
            )
    return notes


def _references(scores: dict[Entry, Scores], reference: str) -> list[str]:
    names = {entry.name for entry in scores}
    if reference not in names:
        raise HataError(
            f"--reference: expected one of {', '.join(sorted(names))}, found {reference!r}"
        )
    # Exact top-k is the ceiling of every sparse arm: shown beside whatever else is asked for.
    return list(dict.fromkeys([reference, *({"exact"} & names)]))


def _task_table(scores: dict[Entry, Scores], task: str) -> str:
    """One task: a line per arm, a column per length."""
    lengths = sorted({n for own in scores.values() for name, n in own if name == task})
    lines = []
    for entry in sorted(scores, key=lambda each: each.sort_key):
        own = scores[entry]
        cells = [
            show(estimate([list(own[task, n].values())])) if (task, n) in own else ""
            for n in lengths
        ]
        if any(cells):
            lines.append([entry.name, entry.bits, entry.budget, *cells])
    return table(["arm", "bits", "budget", *(f"{n} tokens" for n in lengths)], lines)


def tasks_section(rows: Rows, reference: str, min_dense: float) -> tuple[str, dict[Entry, Scores]]:
    """Averages over tasks, then every task; returns the text and the scores that count."""
    scores = task_scores(rows.tasks)
    left_out, known = too_hard(scores, min_dense)
    dropped = {group for group, _ in left_out}
    kept = {
        entry: {group: own for group, own in groups.items() if group not in dropped}
        for entry, groups in scores.items()
    }
    kept = {entry: groups for entry, groups in kept.items() if groups}
    if not kept:
        raise HataError(f"--min-dense: expected a task that dense scores {min_dense}, found none")
    references = _references(kept, reference)
    parts = ["## Tasks", LEGEND + " Scores are out of 100."]
    if left_out:
        names = ", ".join(f"{task} at {n} ({100 * v:.1f})" for (task, n), v in left_out)
        parts.append(f"Left out, because dense itself scores below {100 * min_dense:g}: {names}.")
    elif not known:
        parts.append("Nothing was left out: the files have no dense arm to judge tasks by.")
    parts += check_same_groups(kept, "tasks")
    header = ["arm", "bits", "budget", "samples", "average", *(f"less {r}" for r in references)]
    parts.append(table(header, _average_lines(kept, references, 100.0, 1)))

    for task in sorted({task for own in kept.values() for task, _ in own}):
        parts += [f"### {task}", _task_table(kept, task)]
    return "\n\n".join(parts), kept


def nll_section(rows: Rows, reference: str) -> str:
    """Mean NLL of each arm and the gap to the reference."""
    scores = nll_scores(rows.nll)
    references = _references(scores, reference)
    header = ["arm", "bits", "budget", "chunks", "NLL", *(f"less {r}" for r in references)]
    parts = [
        "## Likelihood of a continuation",
        LEGEND + " In nats per token, decoded step by step; lower is better.",
        *check_same_groups(scores, "texts"),
        table(header, _average_lines(scores, references, 1.0, 4)),
    ]
    return "\n\n".join(parts)


def offline_section(rows: Rows) -> str:
    """Attention mass, recall and output error of each selector, over the sparse layers."""
    columns = {name: offline_scores(rows.offline, name) for name in OFFLINE_COLUMNS}
    lines = []
    for entry in sorted(columns["mass"], key=lambda each: each.sort_key):
        values = [estimate(_values(columns[name][entry])) for name in OFFLINE_COLUMNS]
        lines.append(
            [
                entry.name,
                entry.bits,
                entry.budget,
                str(values[0].count),
                *(show(value, 1.0, 4) for value in values),
            ]
        )
    header = ["selector", "bits", "budget", "heads", *OFFLINE_COLUMNS]
    header = [name.replace("_", " ") for name in header]
    note = (
        f"Averages over layers and KV heads, with {LEVEL:.0%} bootstrap intervals over these: "
        "they say how much heads differ, not how much texts do. Relative mass is that of exact "
        "top-k at the same budget, head by head."
    )
    return "\n\n".join(["## Offline, on captured queries and keys", note, table(header, lines)])


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
    sections, kept = [], {}
    if rows.tasks:
        text, kept = tasks_section(rows, reference, min_dense)
        sections.append(text)
    if rows.nll:
        sections.append(nll_section(rows, reference))
    if rows.offline:
        sections.append(offline_section(rows))
    if not sections:
        raise HataError("expected at least one row in the CSV files, found none")
    images: list[Path] = []
    if plots:
        from hata_sglang.evaluation.report_plots import write_plots

        images = write_plots(rows, kept, out)
        sections.append("\n\n".join(["## Plots", *(f"![{i.stem}]({i.name})" for i in images)]))
    sources = ", ".join(f"`{path.name}`" for path in paths)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "report.md"
    path.write_text(f"# Evaluation\n\nMade from {sources}.\n\n" + "\n\n".join(sections) + "\n")
    return [path, *images]
