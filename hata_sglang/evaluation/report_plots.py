"""PNG plots of a report: task scores against budget, and attention mass against bits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from hata_sglang.evaluation.report_data import OFFLINE, Entry, Row, Scores, by_method, scores
from hata_sglang.evaluation.statistics import average
from hata_sglang.plotting import Points, draw_lines, pyplot

Values = dict[Entry, tuple[float, float, float]]


def _averages(found: Mapping[Entry, Scores]) -> Values:
    values = {}
    for entry, groups in found.items():
        made = average(groups)
        # One sample has no interval.
        has_none = made.low is None or made.high is None
        values[entry] = (made.mean, *((made.mean,) * 2 if has_none else (made.low, made.high)))
    return values


def _against_budget(values: Values) -> dict[str, dict[str, Points]]:
    budgets = sorted({float(entry.budget) for entry in values if entry.budget})
    lines: dict[str, dict] = defaultdict(dict)
    for entry, value in values.items():
        label = entry.name + (f", {entry.bits} bits" if entry.bits else "")
        # What has no budget is the same at each.
        lines[label] |= dict.fromkeys([float(entry.budget)] if entry.budget else budgets, value)
    return {"": lines} if budgets else {}


def _against_bits(values: Values) -> dict[str, dict[str, Points]]:
    panels: dict[str, dict[str, dict]] = {}
    for budget in sorted({entry.budget for entry in values if entry.bits}, key=float):
        coded = {e: v for e, v in values.items() if e.bits and e.budget == budget}
        lines = panels[f"budget {budget}"] = defaultdict(dict)
        for entry, value in coded.items():
            lines[entry.name][float(entry.bits)] = value
        # What codes are measured by: exact top-k of this budget.
        if exact := values.get(Entry("exact", "", budget)):
            lines["exact"] = {float(entry.bits): exact for entry in coded}
    return panels


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
    paths = []
    if panels := _against_budget(_averages(tasks)):
        x = "budget: tokens, or share of the context"
        paths.append(draw_lines(panels, out / "tasks-budget.png", x=x, y="average score"))
    # The mean of the values left out changes the output, and no mass.
    plain = [row for row in rows["offline"] if not row.get("left_out")]
    masses = _averages(scores(by_method(plain), OFFLINE, "relative_mass"))
    if panels := _against_bits(masses):
        y = "attention mass, relative to exact top-k"
        x = "bits per token and KV head"
        paths.append(draw_lines(panels, out / "offline-bits.png", x=x, y=y))
    return paths
