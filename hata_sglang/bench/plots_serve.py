"""Plots of ``bench serve``: arms beside each other by workload, and against users and lengths."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from hata_sglang.bench.plots import Row, file_name, groups
from hata_sglang.plotting import pyplot, save

METRICS = {
    "decode_tokens_per_s": "decode, tokens/s of all users",
    "itl_p50_ms": "between tokens, ms (line: p99)",
    "ttft_p50_s": "first token, s",
}
AXES = {"users": "users", "prompt_tokens": "tokens of a prompt"}


def middle(rows: list[Row], column: str) -> float | None:
    """Median over repeats; None where nothing was measured."""
    values = [float(row[column]) for row in rows if row[column]]
    return median(values) if values else None


def _bars(rows: list[Row], title: str, path: Path) -> Path:
    plt = pyplot()
    arms = [arm for (arm,) in groups(rows, "arm")]
    cells = groups(rows, "workload", "users", "prompt_tokens", "arm")
    places = list(dict.fromkeys(key[:3] for key in cells))
    figure, panels = plt.subplots(1, len(METRICS), figsize=(5 * len(METRICS) + 1, 4.5))
    width = 0.8 / len(arms)
    for axes, (column, label) in zip(panels, METRICS.items(), strict=True):
        for number, arm in enumerate(arms):
            xs = [i + number * width for i in range(len(places))]
            own = [cells.get((*place, arm), []) for place in places]
            heights = [middle(each, column) or 0.0 for each in own]
            bars = None
            if column == "itl_p50_ms":
                tops = [middle(each, "itl_p99_ms") or 0.0 for each in own]
                above = [max(0.0, top - low) for top, low in zip(tops, heights, strict=True)]
                bars = [[0.0] * len(above), above]
            axes.bar(xs, heights, width, yerr=bars, capsize=2, label=arm)
        names = [f"{name}\n{users} x {tokens}" for name, users, tokens in places]
        centre = 0.4 - width / 2
        axes.set_xticks([i + centre for i in range(len(places))], names, fontsize="small")
        axes.set_ylabel(label)
        if column == "ttft_p50_s":
            axes.set_yscale("log")  # a short chat beside a prompt of 128K tokens
    panels[-1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(title)
    return save(figure, path)


def _against(rows: list[Row], x: str, title: str, path: Path) -> list[Path]:
    """Metrics against users or lengths, of workloads that were run with more than one."""
    (other,) = (name for name in AXES if name != x)
    lines = {
        key: own
        for key, own in groups(rows, "workload", other, "arm").items()
        if len({row[x] for row in own}) > 1
    }
    if not lines:
        return []
    figure, panels = pyplot().subplots(1, len(METRICS), figsize=(5 * len(METRICS) + 3, 4.5))
    for axes, (column, label) in zip(panels, METRICS.items(), strict=True):
        for (workload, value, arm), own in lines.items():
            points = {int(at): middle(each, column) for (at,), each in groups(own, x).items()}
            xs = sorted(at for at, y in points.items() if y is not None)
            name = f"{arm}, {workload}, {value} {AXES[other]}"
            axes.plot(xs, [points[at] for at in xs], marker="o", label=name)
        values = sorted({int(row[x]) for own in lines.values() for row in own})
        axes.set_xscale("log", base=2)
        axes.set_xticks(values, [f"{at:,}" for at in values])
        axes.minorticks_off()
        axes.set(xlabel=AXES[x], ylabel=label.partition(" (")[0])
        axes.grid(alpha=0.3)
    panels[-1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(title)
    return [save(figure, path)]


def draw_serve(rows: list[Row], device: str, prefix: str, out: Path) -> list[Path]:
    """Draw one device's rows; arguments as `plots_op.draw_op`."""
    paths = []
    for (model, weights), own in groups(rows, "model", "weights").items():
        title = f"{model} ({weights}), {device}"
        paths.append(_bars(own, title, out / file_name(prefix, "serve", model)))
        for x in AXES:
            paths += _against(own, x, title, out / file_name(prefix, "serve", model, x))
    return paths
