"""Where a measurement comes from: the columns that every committed CSV has."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

import hata_sglang


def provenance() -> dict[str, str]:
    """Date, commit, device, versions and command of the console script that runs.

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
        "command": " ".join(["hata-sglang", *sys.argv[1:]]),
    }


def _commit() -> str:
    command = ["git", "-C", str(Path(hata_sglang.__file__).parent), "describe"]
    command += ["--always", "--dirty=+", "--exclude=*"]  # whatever tags there are
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git on this machine
        return "unknown"
    return done.stdout.strip() or "unknown"


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
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).assign(**provenance()).to_csv(path, index=False)
