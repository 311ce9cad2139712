"""Versions that `hata_sglang.evaluation.provenance` does not have: columns of every row here."""

from importlib.metadata import version

VERSIONS = {"triton": version("triton"), "flashinfer": version("flashinfer-python")}
