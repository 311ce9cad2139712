"""Reading pickles of tensors from strangers without running what they contain.

A pickle names functions and calls them. This reader knows a short list of
names, those that tensors, arrays and containers are made of, and refuses any
other by name before anything is called.
"""

from __future__ import annotations

import collections
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hata_sglang.errors import Problem, Refusal


class _ForbiddenName(pickle.UnpicklingError):
    """A pickle asks for something that tensors are not made of."""


def _storage(content: bytes) -> Any:
    # torch's own function of this name unpickles without restriction, and the bytes inside a
    # tensor's pickle are as untrusted as those around them.
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


_NUMPY_CORES = ("numpy.core.multiarray", "numpy._core.multiarray")
_numpy_core = np._core if hasattr(np, "_core") else np.core

ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
    **{(core, "_reconstruct"): _numpy_core.multiarray._reconstruct for core in _NUMPY_CORES},
}


class _TensorUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise _ForbiddenName(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        raise _ForbiddenName(f"persistent id {pid!r}")


def load_tensor_pickle(path: Path) -> Any:
    """Load a pickle of tensors, arrays, dicts, lists, tuples, numbers and texts.

    Parameters
    ----------
    path : Path

    Returns
    -------
    object
        Tensors on the CPU.

    Raises
    ------
    Refusal
        If the file cannot be read, is no pickle, or names anything else; then
        nothing it names has been called.
    """
    try:
        with path.open("rb") as file:
            return _TensorUnpickler(file).load()
    except OSError as error:
        raise _refusal(path, "a readable file", error.strerror or "none") from error
    except _ForbiddenName as error:
        expected = "a pickle of nothing but tensors, arrays, dicts and lists"
        raise _refusal(path, expected, f"{error}, which was not run") from error
    # Damaged pickles raise whatever their opcodes run into.
    except Exception as error:
        raise _refusal(path, "a pickle of tensors", f"{type(error).__name__}: {error}") from error


def load_state_dict(path: Path) -> Any:
    """Load what ``torch.save`` wrote, tensors and containers only.

    Raises
    ------
    Refusal
        If the file cannot be read, or holds anything else; then it has not been run.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise _refusal(path, "a readable file", error.strerror or "none") from error
    except Exception as error:
        found = next((line for line in str(error).splitlines() if "GLOBAL" in line), str(error))
        raise _refusal(path, "a state dict of tensors (torch.save)", found[:300]) from error


def _refusal(path: Path, expected: str, found: str) -> Refusal:
    return Refusal([Problem(str(path), expected, found)])
