"""Attention mass per layer as a PNG, from a card."""

from __future__ import annotations

from pathlib import Path

from hata_sglang.errors import Refusal
from hata_sglang.plotting import pyplot, save
from hata_sglang.weights import Card


def check_plotting(path: Path) -> None:
    """Refuse, before hours of training, a plot that could not be written after them.

    Raises
    ------
    Refusal
        If the name does not end in .png, or matplotlib is not installed.
    """
    if path.suffix != ".png":
        raise Refusal.of("--plot", "a file name that ends in .png", str(path))
    pyplot(instead="no --plot")


def plot_masses(card: Card, path: Path) -> None:
    """Draw the held-out attention mass of every selector over the layers, a panel per budget.

    Parameters
    ----------
    card : Card
    path : Path
        Of the PNG; its folder is made if missing.
    """
    size = (7.0, 3.2 * len(card.held_out))
    figure, panels = pyplot().subplots(len(card.held_out), figsize=size, squeeze=False)
    for panel, held_out in zip(panels[:, 0], card.held_out, strict=True):
        for name, masses in held_out.per_layer.items():
            label = f"{name} (mean {held_out.mean[name]:.3f})"
            panel.plot(list(masses), list(masses.values()), marker=".", label=label)
        panel.set_title(f"k = {held_out.budget}, {held_out.sink} sink, {held_out.recent} recent")
        panel.set_ylabel("attention mass kept")
        panel.set_ylim(0, 1.02)
        panel.legend(fontsize="small")
        panel.grid(alpha=0.3)
    panels[-1, 0].set_xlabel("layer")
    figure.suptitle(f"{card.model}, {card.method}, {card.bits} bits, held-out texts")
    path.parent.mkdir(parents=True, exist_ok=True)
    save(figure, path)
