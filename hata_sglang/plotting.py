"""What every plot needs: matplotlib without a display, and a PNG file at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hata_sglang.errors import Refusal

DPI = 130


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


def save(figure: Any, path: Path) -> Path:
    """Write a figure as a PNG file and forget it; gives the path."""
    figure.tight_layout()
    figure.savefig(path, dpi=DPI)
    pyplot().close(figure)
    return path
