"""Files of tensors from strangers: pickles, and what ``torch.save`` writes.

``torch.load(weights_only=True)`` runs nothing of a file either, but makes storages as large as a
file of a few bytes says, and its errors advise to trust the file. So both formats of ``torch.save``
are read here, by `hata_sglang.training.safe_pickle`: a zip archive (torch 1.6 and later), and
several pickles with the numbers behind them, which is also how a plain pickle holds the numbers of
a tensor.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from hata_sglang.errors import Refusal
from hata_sglang.files import open_regular
from hata_sglang.training.safe_pickle import ForbiddenName, Room, TensorUnpickler

#: HashAttention's MLPs for 126 layers of 128 heads take 5 GB in float32.
MAX_BYTES = 2**33

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def load_tensor_pickle(path: Path) -> Any:
    """Load a pickle of floating-point tensors, arrays, dicts, lists, tuples, numbers and texts.

    Parameters
    ----------
    path : Path

    Returns
    -------
    object
        Tensors on the CPU; arrays are `hata_sglang.training.safe_pickle.Array`.

    Raises
    ------
    Refusal
        If the file cannot be read, is no such pickle, or names anything else; then nothing that it
        names has been called.
    """
    return _load(path, "a pickle of nothing but tensors, arrays, dicts and lists", _read_pickle)


def load_state_dict(path: Path) -> Any:
    """Load what ``torch.save`` wrote, tensors and containers alone; otherwise as above."""
    return _load(path, "a state dict of tensors (torch.save)", _read_saved)


def _load(path: Path, expected: str, read: Callable[[BinaryIO, Room], Any]) -> Any:
    with open_regular(path, expected, MAX_BYTES) as file:
        try:
            return read(file, Room(os.fstat(file.fileno()).st_size))
        except ForbiddenName as error:
            found = f"{error}, which was not run"
        except pickle.UnpicklingError as error:
            found = str(error)
        # Damaged files raise whatever their opcodes and lengths run into.
        except Exception as error:
            found = f"damage ({type(error).__name__}: {error})"
    raise Refusal.of(str(path), expected, found)


def _read_pickle(file: BinaryIO, room: Room) -> Any:
    def read_storage(content: bytes) -> torch.Tensor:
        return _read_legacy(io.BytesIO(content), room)

    return TensorUnpickler(file, room, _no_storage, read_storage).load()


def _read_saved(file: BinaryIO, room: Room) -> Any:
    is_archive = file.read(4) == b"PK\3\4"
    file.seek(0)
    return (_read_archive if is_archive else _read_legacy)(file, room)


def _read_archive(file: BinaryIO, room: Room) -> Any:
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        # torch.save compresses nothing, so that all entries together are smaller than the file.
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise pickle.UnpicklingError("compressed entries")
        if sum(entry.file_size for entry in archive.infolist()) > room.size:
            raise pickle.UnpicklingError("entries of more bytes than the file has")
        roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise pickle.UnpicklingError(f"{len(roots)} entries named data.pkl")
        (root,) = roots
        if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little":
            raise pickle.UnpicklingError("numbers that are not little-endian")
        made: dict[str, torch.Tensor] = {}

        def storage(key: str, dtype: torch.dtype, count: int) -> torch.Tensor:
            if key not in made:
                made[key] = _empty(room, dtype, count)
                _fill(made[key], archive.read(f"{root}data/{key}"))
            return made[key]

        content = io.BytesIO(archive.read(f"{root}data.pkl"))
        return TensorUnpickler(content, room, storage, _no_bytes).load()


def _read_legacy(file: BinaryIO, room: Room) -> Any:
    made: dict[str, torch.Tensor] = {}

    def storage(key: str, dtype: torch.dtype, count: int) -> torch.Tensor:
        if key not in made:
            made[key] = _empty(room, dtype, count)
        return made[key]

    def load() -> Any:
        return TensorUnpickler(file, room, storage, _no_bytes).load()

    magic, _version, system = load(), load(), load()
    if magic != _LEGACY_MAGIC or system["little_endian"] is not True:
        raise pickle.UnpicklingError("another format than that of torch.save")
    content, keys = load(), load()
    if sorted(keys) != sorted(made):
        raise pickle.UnpicklingError("tensors without numbers, or numbers without tensors")
    for key in keys:
        numbers = made[key]
        (count,) = struct.unpack("<q", file.read(8))
        if count != len(numbers):
            raise pickle.UnpicklingError(f"{count} numbers for a storage of {len(numbers)}")
        _fill(numbers, file.read(numbers.nbytes))
    return content


def _empty(room: Room, dtype: torch.dtype, count: int) -> torch.Tensor:
    room.take(count, dtype.itemsize)
    return torch.empty(count, dtype=dtype)


def _fill(numbers: torch.Tensor, content: bytes) -> None:
    if len(content) != numbers.nbytes:
        raise pickle.UnpicklingError(f"{len(content)} bytes for {len(numbers)} numbers")
    numbers.view(torch.uint8).numpy()[:] = np.frombuffer(content, np.uint8)


def _no_storage(*_: Any) -> torch.Tensor:
    raise pickle.UnpicklingError("a reference to numbers that are not there")


def _no_bytes(content: bytes) -> torch.Tensor:
    raise ForbiddenName("torch.storage._load_from_bytes")
