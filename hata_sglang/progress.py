"""The progress bars of everything that takes long here."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)


def bars(console: Console, *more: ProgressColumn) -> Progress:
    """Bars with a name, a count of what is done, and `more`: by default the time that is left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        *(more or [TimeRemainingColumn()]),
        console=console,
    )
