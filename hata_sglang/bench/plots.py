"""PNG plots of the CSV files of ``hata-sglang bench``."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from hata_sglang.errors import Problem, refuse_any
from hata_sglang.plotting import pyplot

Row = Mapping[str, str]


def file_name(*parts: str) -> str:
    """A name of a PNG file of some words."""
    words = "-".join(part for part in parts if part)
    return "".join(c if c.isalnum() or c in "-._" else "_" for c in words) + ".png"


def read_rows(files: Iterable[Path]) -> tuple[list[Row], list[Row]]:
    """Rows of ``bench op`` and of ``bench serve``, of any number of files of either.

    Raises
    ------
    Refusal
        If a file is of neither.
    """
    op: list[Row] = []
    serve: list[Row] = []
    problems = []
    for path in files:
        with path.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            names = reader.fieldnames or ()
            if {"stage", "p50_us"} <= set(names):
                op += reader
            elif {"workload", "itl_p50_ms"} <= set(names):
                serve += reader
            else:
                expected = "columns of `bench op` (stage, p50_us) or `bench serve` (workload, ...)"
                problems.append(Problem(str(path), expected, ", ".join(names[:6]) or "no columns"))
    refuse_any(problems)
    return op, serve


def groups(rows: Iterable[Row], *columns: str) -> dict[tuple[str, ...], list[Row]]:
    """Rows by the values of some columns, in the order in which they first come."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[column] for column in columns), []).append(row)
    return found


def write_plots(files: Sequence[Path], out: Path) -> list[Path]:
    """Draw what the files have something to say about.

    Parameters
    ----------
    files : sequence of Path
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
    from hata_sglang.bench.plots_op import draw_op
    from hata_sglang.bench.plots_serve import draw_serve

    op, serve = read_rows(files)
    pyplot()
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for draw, rows in ((draw_op, op), (draw_serve, serve)):
        by_device = groups(rows, "device")
        for (device,), own in by_device.items():
            # One device is the usual case, and needs no long names.
            prefix = device if len(by_device) > 1 else ""
            paths += draw(own, device, prefix, out)
    return paths
