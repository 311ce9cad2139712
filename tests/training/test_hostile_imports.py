"""Files to import from strangers: nothing runs, nothing outgrows the file, one refusal."""

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hata_sglang.errors import Refusal
from hata_sglang.training.import_hashattention import read_layers
from test_import_hashattention import converted, modules

NAME = "{}.learning_to_hash_transformation_q.{}.0.weight"


class Call:
    """Calls a function when it is unpickled, and sets a state if there is one."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.reduced


class Outside:
    """Numbers that a pickle refers to."""

    def __init__(self, kind=torch.FloatStorage, key="0", count=1):
        self.id = ("storage", kind, key, "cpu", count)


class Pickler(pickle.Pickler):
    def persistent_id(self, value):
        return value.id if isinstance(value, Outside) else None


def dump(value):
    file = io.BytesIO()
    Pickler(file, protocol=2).dump(value)
    return file.getvalue()


def archive(content, data=b"\0\0\0\0", compression=zipfile.ZIP_STORED):
    """What torch.save writes, of a pickle and of the numbers of its storage ``0``."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as opened:
        opened.writestr("a/data.pkl", content)
        opened.writestr("a/data/0", data)
    return file.getvalue()


def tensor(storage, offset=0, size=(1,), stride=(1,)):
    return Call(
        torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, OrderedDict()
    )


def array(shape, dtype, content):
    """An array as pickles have it, whatever it claims."""
    made = Call(np._core.multiarray._reconstruct, np.ndarray, (0,), b"b")
    made.reduced += ((1, shape, dtype, False, content),)
    return made


def layer_of(value):
    return {
        0: {f"{side}_{part}": [value] for side in ("key", "query") for part in ("matrix", "bias")}
    }


def overlapping():
    """A hundred entries that lie at the same place."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        opened.writestr("a/data.pkl", b"\x80\x02}." + b"\0" * 10_000)
        opened.filelist *= 100
    return file.getvalue()


def legacy(count, claimed):
    """The former format of torch.save, one storage of `claimed` numbers behind the pickles."""
    ids = Outside(count=count)
    ids.id += (None,)
    parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {"a": tensor(ids)}, ["0"]]
    return b"".join(map(dump, parts)) + struct.pack("<q", claimed) + b"\0\0\0\0"


STORAGE = legacy(9999, 9999).removesuffix(b"\0" * 4) + b"\0" * 4 * 9999


#: Name -> suffix, content, and what the refusal says was found.
FILES = {
    "zip bomb": (
        "pt",
        lambda: archive(dump({"a": tensor(Outside(count=2**26))}), b"\0" * 2**28, 8),
        "compressed entries",
    ),
    "overlapping entries": ("pt", overlapping, "entries of more bytes than the file has"),
    "zip without a pickle": (
        "pt",
        lambda: archive(b"").replace(b"data.pkl", b"data.xyz"),
        "0 entries named data.pkl",
    ),
    "storage beyond the file": (
        "pt",
        lambda: archive(dump({"a": tensor(Outside(count=2**40))})),
        "more numbers than the file has bytes for",
    ),
    "storage of fewer numbers": (
        "pt",
        lambda: archive(dump({"a": tensor(Outside(count=2))})),
        "4 bytes for 2 numbers",
    ),
    "storage of integers": (
        "pt",
        lambda: archive(dump({"a": tensor(Outside(torch.LongStorage))})),
        "torch.LongStorage, which was not run",
    ),
    "expanded tensor": (
        "pt",
        lambda: archive(dump({NAME.format(0, 0): tensor(Outside(), 0, (2**40,), (0,))})),
        "more numbers than the file has bytes for",
    ),
    "tensor behind its storage": (
        "pt",
        lambda: archive(dump({"a": tensor(Outside(), 1)})),
        "a tensor outside its storage",
    ),
    "tensor at an offset that overflows": (
        "pt",
        lambda: archive(dump({"a": tensor(Outside(), 2**62)})),
        "a tensor outside its storage",
    ),
    "tensor of a stride that overflows": (
        "pt",
        lambda: archive(dump({"a": tensor(Outside(), 0, (3,), (2**62,))})),
        "a tensor outside its storage",
    ),
    "one tensor named 5,000 times": (
        "pt",
        lambda: archive(
            dump(
                dict.fromkeys(
                    (NAME.format(n, 0) for n in range(5000)),
                    tensor(Outside(count=99_999), 0, (1, 99_999), (1, 1)),
                )
            ),
            b"\0" * 399_996,
        ),
        "more numbers than the file has bytes for",
    ),
    "legacy, storage beyond the file": (
        "pt",
        lambda: legacy(2**40, 2**40),
        "more numbers than the file has bytes for",
    ),
    "legacy, other number": ("pt", lambda: legacy(1, 2**40), "1099511627776 numbers for a stor"),
    "list": ("pt", lambda: archive(dump([1])), "a list"),
    "empty state dict": ("pt", lambda: archive(dump({})), "an empty dict"),
    "layer of 5,000 digits": (
        "pt",
        lambda: archive(dump({NAME.format("9" * 5000, 0): tensor(Outside())})),
        "'999",
    ),
    "head far off": (
        "pt",
        lambda: archive(dump({NAME.format(0, 999999): tensor(Outside(), 0, (1, 1), (1, 1))})),
        "999999",
    ),
    "a call to numpy.ndarray": (
        "pkl",
        lambda: dump([Call(np.ndarray, (2**29,)) for _ in range(3)]),
        "numpy.ndarray, which was not run",
    ),
    "a call to bytearray": (
        "pkl",
        lambda: dump(Call(bytearray, 2**31)),
        "__builtin__.bytearray, which was not run",
    ),
    "array of fewer numbers": (
        "pkl",
        lambda: dump(layer_of(array((2**40,), np.dtype("f4"), b"\0" * 4))).replace(
            b"_codecs", b"_kodecs"
        ),
        "_kodecs.encode, which was not run",
    ),
    "array of objects": (
        "pkl",
        lambda: pickle.dumps(np.array([os.system], dtype=object)),
        "numpy.dtype('O8'), which was not run",
    ),
    "array in a large shape": (
        "pkl",
        lambda: pickle.dumps(layer_of(array((2**40,), np.dtype("f4"), b"\0" * 4))),
        "damage (ValueError",
    ),
    "one array named 5,000 times": (
        "pkl",
        lambda: pickle.dumps(
            {0: layer_of(np.zeros(9))[0] | {"query_matrix": [np.zeros(99)] * 5000}}
        ),
        "more numbers than the file has bytes for",
    ),
    "one layer named 5,000 times": (
        "pkl",
        lambda: pickle.dumps(dict.fromkeys(range(5000), layer_of(np.zeros(9999, "f2"))[0])),
        "more numbers than the file has bytes for",
    ),
    "one storage read 50 times": (
        "pkl",
        lambda: pickle.dumps([Call(torch.storage._load_from_bytes, STORAGE) for _ in range(50)]),
        "more numbers than the file has bytes for",
    ),
    "a memo of four thousand million": ("pkl", lambda: b"\x80\x02K\1r\xff\xff\xff\xff.", "a int"),
    "a million marks": ("pkl", lambda: b"\x80\x02" + b"(" * 10**6 + b".", "damage (IndexError"),
    "bytes of a terabyte": (
        "pkl",
        lambda: b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x",
        "damage",
    ),
    "text of a terabyte": (
        "pkl",
        lambda: b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"x",
        "damage",
    ),
    "an integer of 2 GB": ("pkl", lambda: b"\x80\x02\x8b\xff\xff\xff\x7f1.", "opcode 0x8b, which"),
    "a frame of a terabyte": (
        "pkl",
        lambda: b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"N.",
        "None",
    ),
    "a name without an end": ("pkl", lambda: b"c" + b"x" * 10**6, "x, which was not run"),
    "tuples of tuples as a key": (
        "pkl",
        lambda: b"\x80\x02})q\0" + b"h\0h\0\x86q\0" * 99 + b"K\1s.",
        "a dict whose keys are no texts or integers",
    ),
    "an object of a class": ("pkl", lambda: pickle.dumps(Outside()), "Outside, which was not run"),
    "a state for a tensor": (
        "pt",
        lambda: archive(
            dump({"a": Call(torch._utils._rebuild_parameter, tensor(Outside()), state=(1,))})
        ),
        "a Tensor with a state",
    ),
    "nothing": ("pkl", lambda: b"", "damage (EOFError"),
    "an empty dict": ("pkl", lambda: pickle.dumps({}), "an empty dict"),
    "zeros": ("pkl", lambda: b"\0" * 99, "opcode 0x00"),
}


def refusal(file, bounded, memory=2**28):
    with bounded(memory=memory), pytest.raises(Refusal) as caught:
        read_layers(file)
    text = str(caught.value)
    assert "weights_only" not in text
    assert all(line.isprintable() for line in text.split("\n"))
    return caught.value.problems[0]


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file(tmp_path, bounded, name):
    suffix, content, found = FILES[name]
    file = tmp_path / f"a.{suffix}"
    file.write_bytes(content())
    problem = refusal(file, bounded, memory=2**27)
    assert "damage (MemoryError" not in problem.found
    assert found in problem.found


def test_files_that_are_no_files(tmp_path, bounded):
    os.mkfifo(tmp_path / "a.pt")
    assert refusal(tmp_path / "a.pt", bounded).found == "a FIFO"
    with (tmp_path / "a.pkl").open("wb") as file:
        os.truncate(file.fileno(), 2**40)
    assert refusal(tmp_path / "a.pkl", bounded).expected.endswith(" of at most 8,589,934,592 bytes")
    os.truncate(tmp_path / "a.pkl", 2**32)
    assert refusal(tmp_path / "a.pkl", bounded).found.startswith("opcode 0x00")


def test_the_former_format_of_torch_is_read(tmp_path):
    state = modules().state_dict()
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save(state, tmp_path / "new.pt")
    old, new = (read_layers(tmp_path / name) for name in ("old.pt", "new.pt"))
    assert old.keys() == new.keys() == {0, 1}
    for layer, tensors in new.items():
        assert tensors.keys() == old[layer].keys()
        assert all(torch.equal(tensors[name], old[layer][name]) for name in tensors)


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", ">f8"])
def test_arrays_of_any_order_are_read(tmp_path, dtype):
    numbers = np.arange(24.0).reshape(2, 3, 4)
    for place, values in enumerate([numbers, np.asfortranarray(numbers)]):
        file = tmp_path / f"{place}.pkl"
        lists = {name: [values.astype(dtype)] for name in layer_of(None)[0]}
        file.write_bytes(pickle.dumps({0: lists}, protocol=4))
        tensor = read_layers(file)[0]["key.0.weight"]
        assert tensor.dtype == torch.float32
        assert tensor.tolist() == numbers.tolist()


def test_views_of_one_storage_are_read(tmp_path):
    numbers = torch.arange(24.0)
    named = {NAME.format(0, n): numbers[12 * n : 12 * n + 12].view(3, 4).t() for n in range(2)}
    torch.save(named, tmp_path / "a.pt")
    weight = read_layers(tmp_path / "a.pt")[0]["query.0.weight"]
    assert torch.equal(weight, numbers.view(2, 3, 4))


def files_to_change():
    state = modules(count=1, heads=1, dim=2, layers=1, bits=2).state_dict()
    for new in (True, False):
        file = io.BytesIO()
        torch.save(state, file, _use_new_zipfile_serialization=new)
        yield "pt", file.getvalue()
    lists = converted(modules(count=1, heads=1, dim=2, layers=1, bits=2))
    yield "pkl", pickle.dumps(lists)
    arrays = {
        name: [value.float().numpy() for value in values] for name, values in lists[0].items()
    }
    yield "pkl", pickle.dumps({0: arrays}, protocol=4)
    yield "archive", dump({NAME.format(0, 0): tensor(Outside(count=4), 0, (2, 2), (2, 1))})


CHANGES = st.lists(
    st.tuples(st.integers(0, 2**16), st.integers(0, 6), st.binary(max_size=6)),
    min_size=1,
    max_size=3,
)


@given(st.sampled_from(list(files_to_change())), CHANGES)
@settings(max_examples=500)
def test_any_change_of_a_file(tmp_path_factory, bounded, original, changes):
    kind, content = original
    for place, length, other in changes:
        place %= len(content) + 1
        content = content[:place] + other + content[place + length :]
    if kind == "archive":
        kind, content = "pt", archive(content, b"\0" * 16)
    read_or_refused(tmp_path_factory.getbasetemp() / f"changed.{kind}", content, bounded)


PARTS = [
    *(bytes([opcode]) for opcode in b"(.0N\x88\x89}])tRsuaebQ\x85\x86\x87\x94"),
    b"K\0", b"K\7", b"h\0", b"q\0", b"X\1\0\0\0a", b"X\7\0\0\0storage", b"C\1a",
    b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"cnumpy\ndtype\n",
    b"ctorch.storage\n_load_from_bytes\n", b"ccollections\nOrderedDict\n", b"cnumpy\nndarray\n",
    b"cnumpy.core.multiarray\n_reconstruct\n", b"cos\nsystem\n", b"X\2\0\0\0f4", b"\x8a\1\7",
]  # fmt: skip


@given(st.lists(st.sampled_from(PARTS), max_size=30), st.sampled_from(["pkl", "pt"]))
@settings(max_examples=500)
def test_any_opcodes(tmp_path_factory, bounded, parts, suffix):
    content = b"\x80\x02" + b"".join(parts) + b"."
    content = archive(content) if suffix == "pt" else content
    read_or_refused(tmp_path_factory.getbasetemp() / f"opcodes.{suffix}", content, bounded)


def read_or_refused(file, content, bounded):
    file.write_bytes(content)
    text, layers = "", {}
    with bounded(seconds=5, memory=2**28):
        try:
            layers = read_layers(file)
        except Refusal as error:
            text = str(error)
    assert all(line.isprintable() for line in text.split("\n"))
    assert "MemoryError" not in text
    for tensors in layers.values():
        assert all(type(tensor) is torch.Tensor for tensor in tensors.values())
