"""The one style of every plot: panels of lines over a logarithmic axis, in a PNG file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hata_sglang.errors import Refusal

DPI = 130
#: What the other lines are compared with.
STYLES = {"dense": "k--", "exact": "k:"}
#: Of a line by x: a value, and the bounds of its interval (the value itself where it has none).
Points = Mapping[float, tuple[float, float, float]]


def pyplot(instead: str = "") -> Any:
    """``matplotlib.pyplot`` without a display.

    Parameters
    ----------
    instead : str, default ""
        The flag that does without plots, for the error.

    Raises
    ------
    Refusal
        If matplotlib is missing.
    """
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        expected = 'installed for plots: pip install "hata-sglang[plot]"'
        if instead:
            expected += f" (or {instead})"
        raise Refusal.of("package matplotlib", expected, "no such package") from None
    matplotlib.use("Agg")  # no display on servers
    from matplotlib import pyplot

    return pyplot


def draw_lines(
    panels: Mapping[str, Mapping[str, Points]], path: Path, *, x: str, y: str, **scales: str
) -> Path:
    """Draw lines by label, in panels beside each other.

    Parameters
    ----------
    panels : mapping of str to mapping of str to Points
        Title -> label -> the line. A label has one colour in all panels.
    path : Path
        Of the PNG file.
    x, y : str
        What the axes say.
    **scales
        ``yscale`` of matplotlib.

    Returns
    -------
    Path
        `path`.
    """
    labels = sorted({label for lines in panels.values() for label in lines})
    size = (4.2 * len(panels) + 2.2, 4)
    figure, (row,) = pyplot().subplots(1, len(panels), figsize=size, sharey=True, squeeze=False)
    for axes, (title, lines) in zip(row, panels.items(), strict=True):
        for number, label in enumerate(labels):
            points = dict(sorted(lines.get(label, {}).items()))
            value, low, high = np.array(list(points.values())).reshape(-1, 3).T
            axes.errorbar(
                list(points),
                value,
                yerr=np.maximum([value - low, high - value], 0),
                fmt=STYLES.get(label, f"C{number}-"),
                marker="o",
                markersize=3,
                capsize=3,
                label=label,
            )
        at = sorted({each for points in lines.values() for each in points})
        axes.set(xscale="log", xlabel=x, title=title, **scales)
        axes.set_xticks(at, map(_tick, at))
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    row[0].set_ylabel(y)
    return save(figure, path)


def _tick(number: float) -> str:
    if number <= 1:
        return f"{number:.2%}"
    return f"{number / 1024:g}K" if number % 1024 == 0 else f"{number:g}"


def save(figure: Any, path: Path) -> Path:
    """Write a figure as a PNG file, its legend on the right, and forget it; gives the path."""
    figure.axes[-1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=DPI)
    pyplot().close(figure)
    return path
