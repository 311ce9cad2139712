"""Versions that `hata_sglang.evaluation.provenance` does not have: columns of every row here."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version

PACKAGES = {"triton": "triton", "flashinfer": "flashinfer-python"}


@cache
def package_versions() -> dict[str, str]:
    """Version by column; empty for a package that is not installed."""
    found = {}
    for column, package in PACKAGES.items():
        try:
            found[column] = version(package)
        except PackageNotFoundError:
            found[column] = ""
    return found
