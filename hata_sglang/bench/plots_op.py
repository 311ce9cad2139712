"""Plots of ``bench op``: time of a layer against context, batch and budget; time by stage."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from hata_sglang.bench.op_rows import DENSE, EXACT, LAYER
from hata_sglang.bench.plots import Row, file_name, groups
from hata_sglang.plotting import pyplot, save

AXES = {"context": "context, tokens", "batch": "batch, requests", "k": "k, tokens per KV head"}
MAX_PANELS, COLUMNS = 6, 3
STAGES = ("encode", "rank", "attend")
#: A share of the context as the budget, by its inverse: 64 is 1.56 %.
SHARE = "context / k"
#: Median, and what lies between the 20th and the 80th percentile.
Point = tuple[float, float, float]
Place = dict[str, int]


def _point(row: Row) -> Point:
    return float(row["p50_us"]), float(row["p20_us"]), float(row["p80_us"])


def _inside(row: Row, fixed: Place) -> bool:
    """Whether a row belongs to a panel; dense rows, which have no budget, to those of every k."""
    for name, value in fixed.items():
        if name == SHARE:
            if row["k"] and int(row["k"]) * value != int(row["context"]):
                return False
        elif row[name] and int(row[name]) != value:
            return False
    return True


def layer_lines(rows: list[Row], x: str, fixed: Place) -> dict[str, dict[int, Point]]:
    """Lines of one panel: label -> value of `x` -> microseconds.

    Parameters
    ----------
    rows : list of Row
        Of one shape.
    x : str
        ``context``, ``batch`` or ``k``.
    fixed : dict of str to int
        The values of the other two; `SHARE` instead of ``k`` is the context over k.

    Returns
    -------
    dict
        Sparse layers by method and bits, exact top-k, and the better one of the dense peers, which
        is the same for every k.
    """
    timed = [row for row in rows if row["p50_us"] and _inside(row, fixed)]
    layers = [row for row in timed if row["stage"] == LAYER]
    lines: dict[str, dict[int, Point]] = defaultdict(dict)

    def add(label: str, at: str, row: Row) -> None:
        point = _point(row)
        lines[label][int(at)] = min(point, lines[label].get(int(at), point))

    for row in timed:
        if row["method"] == DENSE:
            for at in {each["k"] for each in layers} if x == "k" else [row[x]]:
                add(DENSE, at, row)
        elif row["stage"] in (LAYER, EXACT):
            add(" ".join(filter(None, (row["method"], row["bits"]))), row[x], row)
    return dict(lines)


def _spread(places: list[Place], count: int) -> list[Place]:
    """`count` of them at most, from the first to the last."""
    places = sorted(places, key=lambda place: tuple(place.values()))
    if len(places) <= count:
        return places
    return [places[round(i * (len(places) - 1) / (count - 1))] for i in range(count)]


def panels(rows: list[Row], x: str) -> list[Place]:
    """The values of the other two axes with the longest lines, of two points or more.

    `MAX_PANELS` of them at most. Those against the context have a k or a share of the context as
    the budget: half of each where lines of both are the longest.
    """
    others = [name for name in AXES if name != x]
    layers = [row for row in rows if row["stage"] == LAYER and row["p50_us"]]

    def points(rows: list[Row], *names: str) -> list[tuple[Place, int]]:
        return [
            (dict(zip(names, map(int, place), strict=True)), len({row[x] for row in own}))
            for place, own in groups(rows, *names).items()
        ]

    kinds = [points(layers, *others)]
    if x == "context":
        whole = [row for row in layers if int(row["context"]) % int(row["k"]) == 0]
        shares = [{**row, SHARE: str(int(row["context"]) // int(row["k"]))} for row in whole]
        kinds.append(points(shares, "batch", SHARE))
    longest = max((count for kind in kinds for _, count in kind), default=0)
    kept = [[place for place, count in kind if count == longest > 1] for kind in kinds]
    kept = [places for places in kept if places]
    return [place for places in kept for place in _spread(places, MAX_PANELS // len(kept))]


def _draw_line(axes: Any, points: dict[int, Point], label: str, colour: str) -> None:
    xs = sorted(points)
    middle = [points[at][0] for at in xs]
    bars = [[max(0.0, points[at][0] - points[at][1]) for at in xs]]
    bars.append([max(0.0, points[at][2] - points[at][0]) for at in xs])
    style = {DENSE: "k--", EXACT: "k:"}.get(label, f"{colour}-")
    axes.errorbar(xs, middle, yerr=bars, fmt=style, marker="o", markersize=3, label=label)


def _ticks(axes: Any, values: set[int]) -> None:
    axes.set_xscale("log", base=2)
    labels = [f"{at // 1024}K" if at % 1024 == 0 else str(at) for at in sorted(values)]
    axes.set_xticks(sorted(values), labels)
    axes.minorticks_off()
    axes.set_yscale("log")
    axes.grid(alpha=0.3)


def _against(rows: list[Row], x: str, title: str, path: Path) -> list[Path]:
    places = panels(rows, x)
    if not places:
        return []
    every = [layer_lines(rows, x, fixed) for fixed in places]
    labels = sorted({label for lines in every for label in lines})
    columns = min(COLUMNS, len(places))
    height = -(-len(places) // columns)
    size = (4.2 * columns + 2.2, 3.6 * height + 0.4)
    figure, grid = pyplot().subplots(height, columns, figsize=size, squeeze=False)
    for axes in grid.flat[len(places) :]:
        axes.set_axis_off()
    for axes, fixed, lines in zip(grid.flat, places, every, strict=False):
        # A method has one colour in all panels, whichever lines a panel has.
        for number, label in enumerate(labels):
            if label in lines:
                _draw_line(axes, lines[label], label, f"C{number % 10}")
        _ticks(axes, {at for points in lines.values() for at in points})
        name = ", ".join(f"{other} {value:,}" for other, value in fixed.items())
        axes.set(xlabel=AXES[x], title=name)
    for axes in grid[:, 0]:
        axes.set_ylabel("attention of one layer, µs")
    shown = {}
    for axes in grid.flat:
        handles, names = axes.get_legend_handles_labels()
        shown |= dict(zip(names, handles, strict=True))
    grid[0, -1].legend(
        [shown[label] for label in labels],
        labels,
        fontsize="small",
        loc="center left",
        bbox_to_anchor=(1, 0.5),
    )
    figure.suptitle(title)
    return [save(figure, path)]


def _by_stage(rows: list[Row], title: str, path: Path) -> list[Path]:
    """Stacked stages of every scenario; few enough to be read, or no plot."""
    timed = [row for row in rows if row["p50_us"] and row["stage"] in STAGES]
    scenarios = groups(timed, "batch", "context", "shared", "k", "method", "bits")
    if not 1 <= len(scenarios) <= 40:
        return []
    figure, axes = pyplot().subplots(figsize=(8, 1.5 + 0.3 * len(scenarios)))
    labels = []
    left = [0.0] * len(scenarios)
    for batch, context, shared, k, method, bits in scenarios:
        own = f", {int(shared) // 1024}K shared" if int(shared) else ""
        labels.append(f"{batch} x {int(context) // 1024}K{own}, k {k}, {method} {bits}")
    for stage in STAGES:
        times = [
            sum(float(row["p50_us"]) for row in own if row["stage"] == stage)
            for own in scenarios.values()
        ]
        axes.barh(labels, times, left=left, label=stage)
        left = [sum(pair) for pair in zip(left, times, strict=True)]
    axes.invert_yaxis()
    axes.set(xlabel="stage by itself, µs", title=title)
    axes.legend(fontsize="small")
    return [save(figure, path)]


def draw_op(rows: list[Row], device: str, prefix: str, out: Path) -> list[Path]:
    """Draw one device's rows.

    Parameters
    ----------
    rows : list of Row
    device : str
        For the titles.
    prefix : str
        For the names of the files; may be empty.
    out : Path
        A folder.
    """
    paths = []
    for (shape,), own in groups(rows, "shape").items():
        title = f"{shape}, {device}"
        # Those of a shared document are no points of a curve of contexts apart.
        apart = [row for row in own if not int(row["shared"])]
        for x in AXES:
            paths += _against(apart, x, title, out / file_name(prefix, "op", shape, x))
        paths += _by_stage(own, title, out / file_name(prefix, "op", shape, "stages"))
    return paths
