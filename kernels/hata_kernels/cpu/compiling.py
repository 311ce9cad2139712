"""How functions are compiled for this machine's CPU.

Compiled code is kept on disk by Numba's rules, in the first of these that can be written to: the
folder that ``NUMBA_CACHE_DIR`` names, ``__pycache__`` beside the module, ``~/.cache/numba``. It is
compiled anew for another CPU, another Numba, or when a file of this folder has changed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import torch
from numba import njit

#: A division by zero gives what numpy's gives, so that loops have no branch for it; a product and
#: the sum that it goes to may be rounded once. Other threads may run meanwhile.
FLAGS = {"error_model": "numpy", "nogil": True, "fastmath": {"contract"}}

#: Numbers come as 16-bit words: one of bfloat16 or float16, or two of float32.
KINDS = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}

#: What a call ends in of which an argument has another type, shape or device. The callers' checks
#: then say which: to check first would take longer than the call.
MISFIT_ERRORS = (TypeError, ValueError, KeyError, AttributeError, IndexError, RuntimeError)

# Numba knows when the file of a function has changed, not when one has that it calls.
_SOURCES = sorted(Path(__file__).parent.glob("*.py"))
_DIGEST = sha256(b"".join(path.read_bytes() for path in _SOURCES)).hexdigest()[:12]


def compiled(signature: str) -> Callable[[Callable], Callable]:
    """Compile a function where it is defined, for arguments of exactly these types.

    With one signature per function, processes can share the cache: Numba numbers the files of a
    function's signatures, and two that compile different ones at once might take one number.

    Parameters
    ----------
    signature : str
        In Numba's notation.

    Returns
    -------
    callable
        A decorator.

    Warns
    -----
    RuntimeWarning
        Where no folder for the cache can be written to: every process compiles for itself.
    """

    def decorate(function: Callable) -> Callable:
        function.__qualname__ += f"-{_DIGEST}"  # the cache's files are named by it
        try:
            return njit(signature, cache=True, **FLAGS)(function)
        except RuntimeError as error:
            if "no locator available" not in str(error):
                raise
            warnings.warn(
                f"{function.__name__} is compiled anew by every process, some seconds each: no "
                "folder for compiled code can be written to. Name one in NUMBA_CACHE_DIR",
                RuntimeWarning,
                stacklevel=2,
            )
            return njit(signature, **FLAGS)(function)

    return decorate
