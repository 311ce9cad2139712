"""Files of tensors from strangers: pickles, and what ``torch.save`` writes. Neither can run code.

A pickle names functions and calls them. State dicts are read by ``torch.load(weights_only=True)``,
and plain pickles by an unpickler that knows the few names which tensors, arrays and containers are
made of: any other is refused before anything of it is called.
"""

from __future__ import annotations

import io
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from hata_sglang.errors import Refusal
from hata_sglang.files import open_regular

#: HashAttention's MLPs for 126 layers of 128 heads take 5 GB in float32.
MAX_BYTES = 2**33


def _read_saved(file: BinaryIO) -> Any:
    return torch.load(file, map_location="cpu", weights_only=True)


_NAMES = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    # Torch's own would run whatever the bytes name.
    ("torch.storage", "_load_from_bytes"): lambda content: _read_saved(io.BytesIO(content)),
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
    # As numpy 1 and 2 call it.
    ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
}


class _TensorUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _NAMES[module, name]
        except KeyError:
            # In the words of torch, which `_load` reads.
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is not allowed") from None


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
        If the file cannot be read, is no such pickle, or names anything else; then nothing that it
        names has been called.
    """
    expected = "a pickle of nothing but tensors, arrays, dicts and lists"
    return _load(path, expected, lambda file: _TensorUnpickler(file).load())


def load_state_dict(path: Path) -> Any:
    """Load what ``torch.save`` wrote, tensors and containers alone; otherwise as above."""
    return _load(path, "a state dict of tensors (torch.save)", _read_saved)


def _load(path: Path, expected: str, read: Callable[[BinaryIO], Any]) -> Any:
    with open_regular(path, expected, MAX_BYTES) as file:
        try:
            return read(file)
        except pickle.UnpicklingError as error:
            # Not torch's whole text: it advises to trust the file.
            text = str(error).rpartition("WeightsUnpickler error:")[2].strip()
            name = re.search(r"GLOBAL (\S+)", text)
            found = f"{name[1]}, which was not run" if name else f"damage ({text.splitlines()[0]})"
        # Damaged files raise whatever their opcodes and lengths run into.
        except Exception as error:
            found = f"damage ({type(error).__name__}: {error})"
    raise Refusal.of(str(path), expected, found)
