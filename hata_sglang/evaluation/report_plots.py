"""PNG plots of a report: quality against budget, a line per arm, and against bits, a panel each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hata_sglang.evaluation.report_data import (
    NLL,
    OFFLINE,
    Entry,
    Row,
    Scores,
    by_method,
    scores,
)
from hata_sglang.evaluation.statistics import Estimate, average
from hata_sglang.plotting import pyplot, save


def _lines(axes: Any, lines: Mapping[str, Mapping[float, Estimate]]) -> None:
    for label in sorted(lines):
        points = lines[label]
        xs = sorted(points)
        means = np.array([points[x].mean for x in xs])
        # One sample has no interval: no bar.
        low = [points[x].mean if points[x].low is None else points[x].low for x in xs]
        high = [points[x].mean if points[x].high is None else points[x].high for x in xs]
        bars = np.maximum([means - low, high - means], 0)
        axes.errorbar(xs, means, yerr=bars, marker="o", capsize=3, label=label)
    axes.set_xscale("log")
    ticks = sorted({x for points in lines.values() for x in points})
    axes.set_xticks(ticks, [f"{x:.2%}" if max(ticks) <= 1 else f"{x:g}" for x in ticks])
    axes.minorticks_off()


def _legend(axes: Any) -> None:
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))


def _against_budget(values: Mapping[Entry, Estimate], quality: str, path: Path) -> list[Path]:
    lines: dict[str, dict[float, Estimate]] = defaultdict(dict)
    for entry, value in values.items():
        if entry.budget:
            bits = f", {entry.bits} bits" if entry.bits else ""
            lines[entry.name + bits][float(entry.budget)] = value
    if not lines:
        return []
    figure, axes = pyplot().subplots(figsize=(7, 4.5))
    _lines(axes, lines)
    for entry, value in values.items():
        if not entry.budget:
            axes.axhline(value.mean, color="black", linestyle="--", label=entry.name)
    axes.set(xlabel="budget: tokens, or share of the context", ylabel=quality)
    _legend(axes)
    return [save(figure, path)]


def _against_bits(values: Mapping[Entry, Estimate], quality: str, path: Path) -> list[Path]:
    panels: dict[str, dict[str, dict[float, Estimate]]] = defaultdict(lambda: defaultdict(dict))
    for entry, value in values.items():
        if entry.bits:
            panels[entry.budget][entry.name][float(entry.bits)] = value
    if not panels:
        return []
    figure, row = pyplot().subplots(
        1, len(panels), figsize=(4 * len(panels) + 2, 4.5), sharey=True, squeeze=False
    )
    for axes, budget in zip(row[0], sorted(panels, key=float), strict=True):
        _lines(axes, panels[budget])
        # What codes are measured by: exact top-k of this budget.
        if exact := values.get(Entry("exact", "", budget)):
            axes.axhline(exact.mean, color="black", linestyle=":", label="exact")
        axes.set(xlabel="bits per token and KV head", title=f"budget {budget}")
    _legend(axes)
    row[0, 0].set_ylabel(quality)
    return [save(figure, path)]


def write_plots(
    tasks: Mapping[Entry, Scores], rows: Mapping[str, Sequence[Row]], out: Path
) -> list[Path]:
    """Draw what the files have something to say about.

    Parameters
    ----------
    tasks : mapping of Entry to Scores
        Task scores without the tasks that the report leaves out; empty without a tasks file.
    rows : mapping of str to sequence of dict
        From `hata_sglang.evaluation.report_data.read_rows`.
    out : Path
        Folder, made if missing.

    Returns
    -------
    list of Path
        The PNG files.

    Raises
    ------
    Refusal
        If matplotlib is missing.
    """
    pyplot(instead="--no-plots")
    out.mkdir(parents=True, exist_ok=True)
    kinds = [
        (_against_budget, tasks, "average score", "tasks-budget.png"),
        (_against_budget, scores(rows["nll"], NLL, "nll"), "NLL, nats per token", "nll-budget.png"),
        (
            _against_bits,
            scores(by_method(rows["offline"]), OFFLINE, "relative_mass"),
            "attention mass, relative to exact top-k",
            "offline-bits.png",
        ),
    ]
    paths = []
    for draw, found, quality, name in kinds:
        values = {entry: average(groups) for entry, groups in found.items()}
        paths += draw(values, quality, out / name)
    return paths
