"""PNG plots of the CSV files of ``hata-sglang bench``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd

from hata_sglang.bench.op_rows import DENSE, EXACT, LAYER
from hata_sglang.errors import Problem, refuse_any
from hata_sglang.plotting import pyplot, save

KILO = 1024
#: The panels of `scenarios.scaling` by what the time is drawn against: title -> which rows.
PANELS: dict[str, dict[str, Callable[[pd.DataFrame], pd.Series]]] = {
    "context": {
        f"batch {batch}, k 1/64 of the context": lambda rows, batch=batch: (
            (rows.batch == batch) & (rows.k * 64 == rows.context)
        )
        for batch in (1, 8)
    },
    "batch": {
        "context 32K, k 512": lambda rows: (rows.context == 32 * KILO) & (rows.k == 512),
    },
    "k": {
        f"batch {batch}, context 128K": lambda rows, batch=batch: (
            (rows.batch == batch) & (rows.context == 128 * KILO)
        )
        for batch in (1, 8)
    },
}
AXES = {"context": "context, tokens", "batch": "batch, requests", "k": "k, tokens per KV head"}
STAGES = ["encode", "rank", "attend"]
#: Scenarios in a plot by stages; more cannot be read.
MOST_BARS = 40
METRICS = {
    "decode_tokens_per_s": "decode, tokens/s of all users",
    "itl_p50_ms": "between tokens, ms (line: p99)",
    "ttft_p50_s": "first token, s",
}


def read_rows(files: Iterable[Path]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of ``bench op`` and of ``bench serve``, of any number of files of either.

    Raises
    ------
    Refusal
        If a file is of neither.
    """
    columns = ({"stage", "p50_us"}, {"workload", "itl_p50_ms"})
    found: tuple[list[pd.DataFrame], ...] = ([], [])
    problems = []
    for path in files:
        rows = pd.read_csv(path)
        for need, group in zip(columns, found, strict=True):
            if need <= set(rows.columns):
                group.append(rows)
                break
        else:
            expected = "columns of `bench op` (stage, p50_us) or `bench serve` (workload, ...)"
            problems.append(Problem(str(path), expected, ", ".join(rows.columns[:6])))
    refuse_any(problems)
    op, serve = (pd.concat(group) if group else pd.DataFrame() for group in found)
    return op, serve


def write_plots(files: Iterable[Path], out: Path) -> list[Path]:
    """Draw what the files have something to say about, by device and model.

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
    paths = []

    def path(rows: pd.DataFrame, device: str, *words: str) -> Path:
        # One device is the usual case, and needs no long names.
        name = "-".join(words if rows.device.nunique() == 1 else (device, *words))
        safe = "".join(c if c.isalnum() or c in "-._" else "_" for c in name)
        paths.append(out / f"{safe}.png")
        return paths[-1]

    for (device, shape), rows in op.groupby(["device", "shape"]) if len(op) else ():
        title = f"{shape}, {device}"
        for x in AXES:
            if tables := panels(rows, x):
                _against(tables, x, title, path(op, device, "op", shape, x))
        if 1 <= len(table := by_stage(rows)) <= MOST_BARS:
            _stages(table, title, path(op, device, "op", shape, "stages"))
    keys = ["device", "model", "weights"]
    for (device, model, weights), rows in serve.groupby(keys) if len(serve) else ():
        _arms(rows, f"{model} ({weights}), {device}", path(serve, device, "serve", model))
    return paths


def panels(rows: pd.DataFrame, x: str) -> dict[str, pd.DataFrame]:
    """Microseconds of a layer by panel: a line a column, indexed by `x`.

    Sparse layers by method and bits, exact top-k, and the better one of the dense peers, which is
    the same for every k. Panels in which no sparse layer has two points are left out.
    """
    rows = rows[rows.p50_us.notna() & (rows.shared == 0)]
    place = ["batch", "context"]
    layers = rows[rows.stage.isin([LAYER, EXACT])]
    dense = rows[rows.method == DENSE].groupby(place, as_index=False).p50_us.min()
    ks = layers[[*place, "k"]].drop_duplicates()
    layers = pd.concat([layers, ks.merge(dense).assign(method=DENSE)])
    bits = layers.bits.map("{:.0f}".format).where(layers.bits.notna(), "")
    layers["line"] = (layers.method + " " + bits).str.strip()
    tables = {}
    for name, inside in PANELS[x].items():
        table = layers[inside(layers)].pivot_table(index=x, columns="line", values="p50_us")
        if table.drop(columns=[DENSE, EXACT], errors="ignore").count().max() > 1:
            tables[name] = table
    return tables


def by_stage(rows: pd.DataFrame) -> pd.DataFrame:
    """Microseconds of every scenario, in the order of the file: a stage a column."""
    rows = rows[rows.p50_us.notna() & rows.stage.isin(STAGES)]
    shared = (rows.shared // KILO).map(", {}K shared".format).where(rows.shared > 0, "")
    size = rows.batch.astype(str) + " x " + (rows.context // KILO).astype(str) + "K" + shared
    codes = rows.method + rows.bits.map(" {:.0f}".format)
    names = size + rows.k.map(", k {:.0f}, ".format) + codes
    table = rows.assign(name=names).pivot_table(index="name", columns="stage", values="p50_us")
    return table.reindex(names.drop_duplicates(), columns=STAGES) if len(table) else table


def _against(tables: dict[str, pd.DataFrame], x: str, title: str, path: Path) -> None:
    labels = sorted({line for table in tables.values() for line in table})
    styles = {DENSE: "k--", EXACT: "k:"}
    size = (4.2 * len(tables) + 2.2, 4)
    figure, (grid,) = pyplot().subplots(1, len(tables), figsize=size, squeeze=False)
    for axes, (name, table) in zip(grid, tables.items(), strict=True):
        # A line has one colour in all panels, whichever lines a panel has.
        for number, label in enumerate(labels):
            line = table[label].dropna() if label in table else pd.Series(dtype=float)
            style = styles.get(label, f"C{number}-")
            axes.plot(line.index, line, style, marker="o", markersize=3, label=label)
        axes.set_xscale("log", base=2)
        ticks = [f"{at // KILO}K" if at % KILO == 0 else str(at) for at in table.index.astype(int)]
        axes.set_xticks(table.index, ticks)
        axes.minorticks_off()
        axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.set(xlabel=AXES[x], title=name)
    grid[0].set_ylabel("attention of one layer, µs")
    grid[-1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(title)
    save(figure, path)


def _stages(table: pd.DataFrame, title: str, path: Path) -> None:
    figure, axes = pyplot().subplots(figsize=(8, 1.5 + 0.3 * len(table)))
    table.plot.barh(stacked=True, ax=axes, width=0.8)
    axes.invert_yaxis()
    axes.set(xlabel="stage by itself, µs", ylabel="", title=title)
    axes.legend(fontsize="small")
    save(figure, path)


def _arms(rows: pd.DataFrame, title: str, path: Path) -> None:
    """Arms beside each other, by workload."""
    size = rows.users.astype(str) + " x " + rows.prompt_tokens.astype(str)
    rows = rows.assign(place=rows.workload + "\n" + size)
    figure, grid = pyplot().subplots(1, len(METRICS), figsize=(5 * len(METRICS) + 1, 4.5))
    for axes, (column, label) in zip(grid, METRICS.items(), strict=True):

        def table(column: str) -> pd.DataFrame:
            found = rows.pivot_table(index="place", columns="arm", values=column, dropna=False)
            return found.reindex(rows.place.unique(), columns=rows.arm.unique())

        heights, bars = table(column), None
        if column == "itl_p50_ms":
            above = (table("itl_p99_ms") - heights).fillna(0).T.to_numpy()
            bars = [[[0] * len(heights), line] for line in above]
        heights.plot.bar(
            ax=axes, yerr=bars, capsize=2, width=0.8, rot=0, fontsize="small", legend=False
        )
        axes.set(xlabel="", ylabel=label)
    grid[-1].set_yscale("log")  # a short chat beside a prompt of 128K tokens
    grid[-1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(title)
    save(figure, path)
