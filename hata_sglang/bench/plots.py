"""PNG plots of the CSV files of ``hata-sglang bench``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from hata_sglang.bench.op_rows import DENSE, EXACT, LAYER
from hata_sglang.errors import Problem, refuse_any
from hata_sglang.plotting import Points, draw_lines, pyplot, save

METRICS = {
    "decode_tokens_per_s": "decode, tokens/s of all users",
    "itl_p50_ms": "between tokens, ms",
    "ttft_p50_s": "first token, s",
}
#: k as a share of the context, in the plot against it.
SHARE = 64


def read_rows(files: Iterable[Path]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of ``bench op`` and of ``bench serve``, of any number of files of either.

    Raises
    ------
    Refusal
        If a file is of neither.
    """
    op, serve, problems = [pd.DataFrame()], [pd.DataFrame()], []
    for path in files:
        rows = pd.read_csv(path)
        if {"stage", "p50_us"} <= set(rows.columns):
            op.append(rows)
        elif {"workload", "itl_p50_ms"} <= set(rows.columns):
            serve.append(rows)
        else:
            expected = "columns of `bench op` (stage, p50_us) or `bench serve` (workload, ...)"
            problems.append(Problem(str(path), expected, ", ".join(rows.columns[:6])))
    refuse_any(problems)
    return pd.concat(op), pd.concat(serve)


def write_plots(files: Iterable[Path], out: Path) -> list[Path]:
    """Draw what the files have something to say about: one plot for each device and model.

    Parameters
    ----------
    files : iterable of Path
        CSV files of ``bench op`` and ``bench serve``.
    out : Path
        Folder, made if missing.

    Returns
    -------
    list of Path
        The PNG files.

    Raises
    ------
    Refusal
        If a file is of neither command, or matplotlib is missing.
    """
    pyplot()
    op, serve = read_rows(files)
    out.mkdir(parents=True, exist_ok=True)

    def path(*words: str) -> Path:
        name = "-".join(words)
        return out / ("".join(c if c.isalnum() or c in "-._" else "_" for c in name) + ".png")

    paths = []
    for (device, shape), rows in op.groupby(["device", "shape"]) if len(op) else ():
        if panels := against_context(rows):
            labels = {"x": f"context of {shape}, tokens ({device})", "yscale": "log"}
            where = path("op", shape, device)
            paths.append(draw_lines(panels, where, y="attention of one layer, µs", **labels))
    for (device, model), rows in serve.groupby(["device", "model"]) if len(serve) else ():
        paths.append(_arms(rows, f"{model}, {device}", path("serve", model, device)))
    return paths


def against_context(rows: pd.DataFrame) -> dict[str, dict[str, Points]]:
    """Microseconds of a layer of one request and of eight, by line and context.

    Sparse layers by method and bits, exact top-k, and the better one of the dense peers. Panels in
    which no sparse layer has two points are left out.
    """
    rows = rows[rows.p50_us.notna() & (rows.shared == 0)]
    layers = rows[rows.stage.isin([LAYER, EXACT]) & (rows.k * SHARE == rows.context)]
    dense = rows[rows.method == DENSE].groupby(["batch", "context"], as_index=False).p50_us.min()
    dense = dense.merge(layers[["batch", "context"]].drop_duplicates()).assign(method=DENSE)
    layers = pd.concat([layers, dense])
    bits = layers.bits.map("{:.0f}".format).where(layers.bits.notna(), "")
    layers["line"] = (layers.method + " " + bits).str.strip()
    panels = {}
    for batch in (1, 8):
        lines = {
            line: {at: (us, us, us) for at, us in zip(own.context, own.p50_us, strict=True)}
            for line, own in layers[layers.batch == batch].groupby("line")
        }
        if any(len(points) > 1 for line, points in lines.items() if line not in (DENSE, EXACT)):
            panels[f"batch {batch}, k 1/{SHARE} of the context"] = lines
    return panels


def _arms(rows: pd.DataFrame, title: str, path: Path) -> Path:
    """Arms beside each other, by workload."""
    size = rows.users.astype(str) + " x " + rows.prompt_tokens.astype(str)
    rows = rows.assign(place=rows.workload + "\n" + size)
    figure, grid = pyplot().subplots(1, len(METRICS), figsize=(5 * len(METRICS) + 1, 4.5))
    for axes, (column, label) in zip(grid, METRICS.items(), strict=True):
        table = rows.pivot_table(index="place", columns="arm", values=column, dropna=False)
        table = table.reindex(rows.place.unique(), columns=rows.arm.unique())
        table.plot.bar(ax=axes, width=0.8, rot=0, fontsize="small", legend=False)
        axes.set(xlabel="", ylabel=label)
    grid[-1].set_yscale("log")  # a short chat beside a prompt of 128K tokens
    figure.suptitle(title)
    return save(figure, path)
