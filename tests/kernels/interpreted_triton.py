"""Triton with its interpreter, where there is no GPU; tests/conftest.py runs it before collection.

Triton decides at import, function by function. Many test modules import it by way of transformers,
so importing it in a conftest of this folder alone would be too late.
"""

from __future__ import annotations

import os

import pytest
import torch


def load_interpreted_kernels() -> None:
    """Import Triton and our kernels with the interpreter on, and leave the environment as it was.

    The variable must not stay: servers that other tests start would inherit it. `gluon` is imported
    at a kernel's first launch and refuses an interpreted Triton unless the variable is set, so it
    is imported here.
    """
    os.environ["TRITON_INTERPRET"] = "1"
    import triton.language as tl
    from triton.runtime.interpreter import InterpretedFunction

    if not isinstance(tl.sum, InterpretedFunction):
        raise pytest.UsageError("Triton was imported before its interpreter could be chosen")
    import hata_kernels.attend.dense_kernels
    import hata_kernels.attend.dense_prefix
    import hata_kernels.attend.gather_kernels
    import hata_kernels.attend.pages
    import hata_kernels.encode.triton
    import hata_kernels.encode.triton_planes
    import hata_kernels.encode.triton_residual
    import hata_kernels.encode.triton_step
    import hata_kernels.encode.triton_step_linear
    import hata_kernels.rank.triton
    import hata_kernels.rows.triton
    import hata_kernels.score.exact_triton  # noqa: F401

    del os.environ["TRITON_INTERPRET"]


if not torch.cuda.is_available():
    load_interpreted_kernels()
