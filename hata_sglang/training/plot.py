"""Attention mass per layer as a PNG, from a card."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from hata_sglang.errors import Problem, refuse_any
from hata_sglang.weights import Card


def check_plotting(path: Path) -> None:
    """Refuse, before hours of training, a plot that could not be written after them.

    Raises
    ------
    Refusal
        If the name does not end in .png, or matplotlib is not installed.
    """
    problems = []
    if path.suffix != ".png":
        problems.append(Problem("--plot", "a file name that ends in .png", str(path)))
    if importlib.util.find_spec("matplotlib") is None:
        found = "none; install it with: pip install 'hata-sglang[plot]'"
        problems.append(Problem("--plot", "the package matplotlib", found))
    refuse_any(problems)


def plot_masses(card: Card, path: Path) -> None:
    """Draw the held-out attention mass of every selector over the layers, a panel per budget.

    Parameters
    ----------
    card : Card
    path : Path
        Of the PNG; its folder is made if missing.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 3.2 * len(card.held_out)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(card.held_out), squeeze=False)[:, 0]
    for panel, held_out in zip(panels, card.held_out, strict=True):
        for name, masses in held_out.per_layer.items():
            label = f"{name} (mean {held_out.mean[name]:.3f})"
            panel.plot(list(masses), list(masses.values()), marker=".", label=label)
        panel.set_title(f"k = {held_out.budget}, {held_out.sink} sink, {held_out.recent} recent")
        panel.set_ylabel("attention mass kept")
        panel.set_ylim(0, 1.02)
        panel.legend(fontsize="small")
        panel.grid(alpha=0.3)
    panels[-1].set_xlabel("layer")
    figure.suptitle(f"{card.model}, {card.method}, {card.bits} bits, held-out texts")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
