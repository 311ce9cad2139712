"""Where a measurement comes from: the columns that every committed CSV has."""

from __future__ import annotations

import csv
import datetime
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import hata_sglang

#: How ``sys.argv`` begins for the console script, and for ``python -m hata_sglang.cli``.
CONSOLE_SCRIPT = ("hata-sglang", "cli.py")


def provenance() -> dict[str, str]:
    """Date, commit, device, versions and command of the running program.

    Returns
    -------
    dict of str to str
        The commit is ``$HATA_COMMIT`` if set (a copy of the tree without its git folder), else
        what git says of the folder of the package, with ``+`` if files were changed.
    """
    return {
        "date": datetime.date.today().isoformat(),
        "commit": os.environ.get("HATA_COMMIT") or _commit(),
        "device": _device(),
        "sglang": version("sglang"),
        "torch": version("torch"),
        "python": platform.python_version(),
        "command": _command(),
    }


def _command() -> str:
    """The command line; a console script goes by its name, wherever it is installed."""
    if Path(sys.argv[0]).name in CONSOLE_SCRIPT:
        return " ".join(["hata-sglang", *sys.argv[1:]])
    return " ".join(["python", *sys.argv])


def _git(*words: str) -> str | None:
    command = ["git", "-C", str(Path(hata_sglang.__file__).parent), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git on this machine
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _commit() -> str:
    commit = _git("rev-parse", "--short", "HEAD")
    if commit is None:
        return "unknown"
    return commit + ("+" if _git("status", "--porcelain") else "")


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    names = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return f"{names[0] if names else platform.machine()}, {len(os.sched_getaffinity(0))} cores"


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows, each with the columns of `provenance` behind its own.

    Parameters
    ----------
    path : path
        Its folder is made if missing; a file there is replaced.
    rows : sequence of mapping
        All with the same keys; at least one.
    """
    stamp = provenance()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with Path(path).open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [*rows[0], *stamp])
        writer.writeheader()
        writer.writerows({**row, **stamp} for row in rows)
