"""PNG plots of a report: needle heat maps, quality against budget, quality against bits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hata_sglang.evaluation.report_data import (
    Entry,
    Rows,
    Scores,
    by_method,
    nll_scores,
    offline_scores,
)
from hata_sglang.evaluation.statistics import Estimate, estimate
from hata_sglang.plotting import pyplot, save

NEEDLE = "needle"


def needle_grids(
    rows: list[dict[str, str]],
) -> dict[Entry, dict[tuple[float, int], float]]:
    """Average score of the task ``needle`` by arm, then (depth, length)."""
    cells: dict[Entry, dict[tuple[float, int], list[float]]] = {}
    for row in rows:
        if row["task"] == NEEDLE and row["depth"]:
            entry = Entry(row["arm"], row["bits"], row["budget"])
            grid = cells.setdefault(entry, defaultdict(list))
            grid[float(row["depth"]), int(row["length"])].append(float(row["score"]))
    return {
        entry: {place: sum(scores) / len(scores) for place, scores in grid.items()}
        for entry, grid in cells.items()
    }


def _title(entry: Entry) -> str:
    bits = f", {entry.bits} bits" if entry.bits else ""
    budget = f", budget {entry.budget}" if entry.budget else ""
    return f"{entry.name}{bits}{budget}"


def _heat_maps(rows: Rows, out: Path) -> list[Path]:
    plt = pyplot()
    grids = needle_grids(rows.tasks)
    # One scale of depths and lengths for all arms, so that the pictures compare.
    depths = sorted({depth for grid in grids.values() for depth, _ in grid})
    lengths = sorted({length for grid in grids.values() for _, length in grid})
    paths = []
    for entry in sorted(grids, key=lambda each: each.sort_key):
        values = np.full((len(depths), len(lengths)), np.nan)
        for (depth, length), score in grids[entry].items():
            values[depths.index(depth), lengths.index(length)] = score
        size = (1.8 + 0.9 * len(lengths), 1.6 + 0.4 * len(depths))
        figure, axes = plt.subplots(figsize=(max(size[0], 4), max(size[1], 3)))
        image = axes.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        axes.set_xticks(range(len(lengths)), [str(length) for length in lengths])
        axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
        axes.set(xlabel="length, tokens", ylabel="depth of the needle", title=_title(entry))
        figure.colorbar(image, label="score")
        name = "-".join(part for part in (entry.name, entry.bits, entry.budget) if part)
        paths.append(save(figure, out / f"needle-{name.replace('/', '_')}.png"))
    return paths


def _bar(value: Estimate) -> tuple[float, float]:
    """Lengths of the error bar, down and up."""
    if value.low is None or value.high is None:
        return 0.0, 0.0
    return max(value.mean - value.low, 0.0), max(value.high - value.mean, 0.0)


def _line(axes: Any, points: dict[float, Estimate], label: str) -> None:
    xs = sorted(points)
    bars = np.array([_bar(points[x]) for x in xs]).T
    axes.errorbar(xs, [points[x].mean for x in xs], yerr=bars, marker="o", capsize=3, label=label)


def _against_budget(values: Mapping[Entry, Estimate], quality: str, path: Path) -> list[Path]:
    lines: dict[str, dict[float, Estimate]] = defaultdict(dict)
    for entry, value in values.items():
        if entry.budget_number is not None:
            bits = f", {entry.bits} bits" if entry.bits else ""
            lines[entry.name + bits][entry.budget_number] = value
    if not lines:
        return []
    figure, axes = pyplot().subplots(figsize=(7, 4.5))
    for label in sorted(lines):
        _line(axes, lines[label], label)
    for entry, value in values.items():
        if entry.budget_number is None:
            axes.axhline(value.mean, color="black", linestyle="--", label=entry.name)
    budgets = {x for points in lines.values() for x in points}
    shares = all(x <= 1 for x in budgets)
    axes.set_xscale("log")
    axes.set_xticks(sorted(budgets), [f"{x:.2%}" if shares else f"{x:g}" for x in sorted(budgets)])
    axes.minorticks_off()
    axes.set(xlabel="budget, share of the context" if shares else "budget", ylabel=quality)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return [save(figure, path)]


def _against_bits(values: Mapping[Entry, Estimate], quality: str, path: Path) -> list[Path]:
    lines: dict[tuple[str, str], dict[float, Estimate]] = defaultdict(dict)
    for entry, value in values.items():
        if entry.bits_number is not None:
            lines[entry.budget, entry.name][entry.bits_number] = value
    if not lines:
        return []
    bits = sorted({x for points in lines.values() for x in points})
    budgets = sorted({budget for budget, _ in lines}, key=lambda text: float(text or 0))
    figure, panels = pyplot().subplots(
        1, len(budgets), figsize=(4 * len(budgets) + 2, 4.5), sharey=True, squeeze=False
    )
    for axes, budget in zip(panels[0], budgets, strict=True):
        for each, name in sorted(lines):
            if each == budget:
                _line(axes, lines[each, name], name)
        # What codes are measured by: exact top-k of this budget, and dense.
        for entry, style in ((Entry("exact", "", budget), ":"), (Entry("dense", "", ""), "--")):
            if entry in values:
                mean = values[entry].mean
                axes.axhline(mean, color="black", linestyle=style, label=entry.name)
        axes.set_xscale("log")
        axes.set_xticks(bits, [f"{x:g}" for x in bits])
        axes.minorticks_off()
        axes.set(xlabel="bits per token and KV head", title=f"budget {budget}")
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    panels[0, 0].set_ylabel(quality)
    return [save(figure, path)]


def averages(scores: Mapping[Entry, Scores]) -> dict[Entry, Estimate]:
    """Average of each entry, as in the tables."""
    return {
        entry: estimate([list(own.values()) for own in groups.values()])
        for entry, groups in scores.items()
    }


def write_plots(rows: Rows, tasks: Mapping[Entry, Scores], out: Path) -> list[Path]:
    """Draw what the files have something to say about.

    Parameters
    ----------
    rows : Rows
    tasks : mapping of Entry to Scores
        Task scores without the tasks that the report leaves out; empty without a tasks file.
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
    offline = offline_scores(by_method(rows.offline), "relative_mass")
    kinds = [
        ("tasks", "average score", averages(tasks)),
        ("nll", "NLL, nats per token", averages(nll_scores(rows.nll))),
        ("offline", "attention mass, relative to exact top-k", averages(offline)),
    ]
    paths = _heat_maps(rows, out)
    for kind, quality, values in kinds:
        paths += _against_budget(values, quality, out / f"{kind}-budget.png")
        paths += _against_bits(values, quality, out / f"{kind}-bits.png")
    return paths
