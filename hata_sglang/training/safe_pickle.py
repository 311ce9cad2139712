"""A reader of pickles from strangers: nothing that they name is run, nothing outgrows the file.

A pickle names functions and calls them. This reader knows a short list of names, those that
floating-point tensors, arrays and containers are made of, and puts its own functions in their
place; any other is refused by name before anything is called. The storages that a pickle asks for
take no more bytes, all together, than the file has, and tensors are views of them: whoever copies
these has to count, too (`Room`), as a few bytes can name one tensor a thousand times.

The formats around it are in `hata_sglang.training.tensor_files`.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
import torch

_STORAGES = {
    ("torch", "FloatStorage"): torch.float32,
    ("torch", "DoubleStorage"): torch.float64,
    ("torch", "HalfStorage"): torch.float16,
    ("torch", "BFloat16Storage"): torch.bfloat16,
}
# Containers, numbers, texts, bytes, the memo, calls. Not among them: objects of classes, sets, long
# integers, and what only protocols 0 and 1 write.
# fmt: off
_OPCODES = (
    pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.NONE, pickle.NEWTRUE,
    pickle.NEWFALSE, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.BINFLOAT,
    pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.BINUNICODE8, pickle.BINBYTES,
    pickle.SHORT_BINBYTES, pickle.BINBYTES8, pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1,
    pickle.TUPLE2, pickle.TUPLE3, pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS,
    pickle.EMPTY_DICT, pickle.SETITEM, pickle.SETITEMS, pickle.BINPUT, pickle.LONG_BINPUT,
    pickle.MEMOIZE, pickle.BINGET, pickle.LONG_BINGET, pickle.GLOBAL, pickle.STACK_GLOBAL,
    pickle.REDUCE, pickle.BUILD, pickle.BINPERSID,
)
# fmt: on

#: Makes the storage of a key, dtype and number of elements: a tensor of one dimension.
StorageMaker = Callable[[str, torch.dtype, int], torch.Tensor]


class ForbiddenName(pickle.UnpicklingError):
    """A pickle asks for something that tensors are not made of."""


class Room:
    """Bytes that may still be made of a file: no more than it has.

    Parameters
    ----------
    size : int
        Of the file.
    """

    def __init__(self, size: int) -> None:
        self.size = self._left = size

    def take(self, count: int, item_bytes: int) -> None:
        """Take the bytes of so many numbers.

        Raises
        ------
        pickle.UnpicklingError
            If there are fewer left.
        """
        if type(count) is not int or count < 1:
            raise pickle.UnpicklingError("a tensor or storage without numbers")
        self._left -= count * item_bytes
        if self._left < 0:
            raise pickle.UnpicklingError("more numbers than the file has bytes for")


class Array:
    """In place of a ``numpy.ndarray``, which would allocate what it is called with.

    Attributes
    ----------
    numbers : numpy.ndarray
        Float16, float32 or float64, a view of the pickle's bytes, once `set_state` was called.
    """

    numbers: np.ndarray

    def __init__(self, *_: Any) -> None:
        pass

    def set_state(self, state: tuple) -> None:
        """Take the numbers, which lie in the pickle."""
        _, shape, dtype, is_fortran, content = state
        numbers = np.frombuffer(content, dtype.numpy)
        self.numbers = numbers.reshape(shape, order="F" if is_fortran else "C")


class _DType:
    """In place of a ``numpy.dtype``, whose state can be more than its byte order."""

    def __init__(self, name: str, *_: Any) -> None:
        if name not in ("f2", "f4", "f8"):
            raise ForbiddenName(f"numpy.dtype({name!r})")
        self.numpy = np.dtype(name)

    def set_state(self, state: tuple) -> None:
        self.numpy = self.numpy.newbyteorder(state[1])


class _Reader:
    """A file as pickle reads it: no read allocates more than the file has, no line is long."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.read = lambda count: file.read(min(count, size))
        self.readline = lambda: file.readline(200)


class _Opcodes(dict):
    def __missing__(self, opcode: int) -> Callable:
        raise pickle.UnpicklingError(f"opcode {opcode:#04x}, which tensors do not need")


class TensorUnpickler(pickle._Unpickler):
    """Makes tensors, `Array`, dicts, lists, tuples, numbers and texts.

    Derived from Python's reader in Python: the one in C makes its memo as long as any index that a
    file names.

    Parameters
    ----------
    file : binary file
        Read from its place; may go on after the pickle.
    room : Room
    make_storage : callable
        For references to numbers outside the pickle.
    read_storage : callable
        For numbers in bytes inside the pickle, in a format of their own.
    """

    dispatch = _Opcodes((opcode[0], pickle._Unpickler.dispatch[opcode[0]]) for opcode in _OPCODES)

    def __init__(
        self,
        file: BinaryIO,
        room: Room,
        make_storage: StorageMaker,
        read_storage: Callable[[bytes], torch.Tensor],
    ) -> None:
        super().__init__(_Reader(file, room.size))
        self._make_storage = make_storage
        self._functions = {
            **_STORAGES,
            ("collections", "OrderedDict"): lambda: OrderedDict(),
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
            ("torch.storage", "_load_from_bytes"): read_storage,
            ("numpy", "dtype"): _DType,
            ("numpy", "ndarray"): self._ndarray,
            ("numpy.core.multiarray", "_reconstruct"): Array,
            ("numpy._core.multiarray", "_reconstruct"): Array,
        }

    def find_class(self, module: str, name: str) -> Any:
        """Give what stands in place of a name."""
        try:
            return self._functions[module, name]
        except KeyError:
            raise ForbiddenName(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> torch.Tensor:
        """Make the storage that a reference names."""
        kind, dtype, key, _device, count, *view = pid
        known = kind == "storage" and isinstance(dtype, torch.dtype) and type(key) is str
        if not known or view not in ([], [None]):
            raise pickle.UnpicklingError("a reference to something else than numbers")
        return self._make_storage(key, dtype, count)

    @staticmethod
    def _tensor(
        storage: torch.Tensor, offset: int, size: tuple, stride: tuple, *_: Any
    ) -> torch.Tensor:
        if not all(type(number) is int and number >= 0 for number in (offset, *size, *stride)):
            raise pickle.UnpicklingError("a tensor without a shape")
        # Torch checks this as well, but with numbers that overflow.
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if last >= len(storage) or not storage.is_contiguous():
            raise pickle.UnpicklingError("a tensor outside its storage")
        return storage.as_strided(size, stride, offset)

    @staticmethod
    def _ndarray(*_: Any) -> None:
        raise ForbiddenName("numpy.ndarray")

    def _set_items(self, keys: list, values: list) -> None:
        target = self.stack[-1]
        # Tuples of tuples of tuples are not hashed: it may take for ever.
        if type(target) not in (dict, OrderedDict) or {type(key) for key in keys} - {str, int}:
            raise pickle.UnpicklingError("a dict whose keys are no texts or integers")
        target.update(zip(keys, values, strict=True))

    def load_setitem(self) -> None:
        """Set one item of a dict."""
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key], [value])

    def load_setitems(self) -> None:
        """Set the items of a dict since the mark."""
        items = self.pop_mark()
        self._set_items(items[::2], items[1::2])

    def load_build(self) -> None:
        """Set an object's state: an array's numbers; what hangs on a dict is left away."""
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Array | _DType):
            target.set_state(state)
        elif type(target) is not OrderedDict:
            raise pickle.UnpicklingError(f"a {type(target).__name__} with a state")

    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.BUILD[0]] = load_build
