"""A wheel built from the checkout, and an installation of it outside the checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCES = ("pyproject.toml", "README.md", "LICENSE", "hata_sglang", "kernels", "weights")


def pip(*args: str | Path) -> None:
    """Run pip of this interpreter; fail with what it printed."""
    command = [sys.executable, "-m", "pip", *map(str, args), "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def wheel(repo_root, tmp_path_factory) -> Path:
    """Build the wheel from a copy: a `build/` left in the checkout could leak old files into it."""
    source = tmp_path_factory.mktemp("source")
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    for name in SOURCES:
        if (repo_root / name).is_dir():
            shutil.copytree(repo_root / name, source / name, ignore=ignore)
        else:
            shutil.copy(repo_root / name, source / name)
    out = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", out, source)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory) -> Path:
    """A folder with the wheel installed, and nothing of the checkout."""
    target = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--no-index", "--target", target, wheel)
    return target
