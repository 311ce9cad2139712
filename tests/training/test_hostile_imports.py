"""Files to import from strangers: nothing of them runs, and one refusal says what is wrong."""

import io
import os
import pickle
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
    """Calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


def saved(value, **options):
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def inside_a_tensor(attack):
    """The bytes of a tensor's numbers, which are a file of torch's own, are the attack."""
    return pickle.dumps({0: Call(torch.storage._load_from_bytes, saved(attack))})


class Thing:
    """Of a class that tensors are not made of."""


#: Name -> suffix, content, and what the refusal says was found.
FILES = {
    "a call in a state dict": (
        "pt",
        lambda: saved({"a": Call(os.mkdir, "harm")}),
        "posix.mkdir, which was not run",
    ),
    "a call in the former format of torch": (
        "pt",
        lambda: saved({"a": Call(os.mkdir, "harm")}, _use_new_zipfile_serialization=False),
        "posix.mkdir, which was not run",
    ),
    "an object in a state dict": ("pt", lambda: saved({"a": Thing()}), "Thing, which was not run"),
    "a call in a pickle": (
        "pkl",
        lambda: pickle.dumps({0: Call(os.mkdir, "harm")}),
        "posix.mkdir, which was not run",
    ),
    "a call in a tensor of a pickle": (
        "pkl",
        lambda: inside_a_tensor(Call(os.mkdir, "harm")),
        "posix.mkdir, which was not run",
    ),
    "a function of Python's": (
        "pkl",
        lambda: pickle.dumps(Call(bytearray, 3), protocol=2),
        "__builtin__.bytearray, which was not run",
    ),
    "an object in a pickle": ("pkl", lambda: pickle.dumps(Thing()), "Thing, which was not run"),
    "a name without an end": ("pkl", lambda: b"c" + b"x" * 10**6, "damage"),
    "an array of functions": (
        "pkl",
        lambda: pickle.dumps(np.array([os.system], dtype=object)),
        "posix.system, which was not run",
    ),
    "half a state dict": ("pt", lambda: saved({"a": torch.zeros(9)})[:200], "damage"),
    "half a pickle": ("pkl", lambda: pickle.dumps({0: np.zeros(9)})[:60], "damage"),
    "nothing": ("pkl", lambda: b"", "damage (EOFError"),
    "zeros, as a pickle": ("pkl", lambda: b"\0" * 99, "damage"),
    "zeros, as a state dict": ("pt", lambda: b"\0" * 99, "damage (Unsupported operand 0)"),
    "an empty dict": ("pkl", lambda: pickle.dumps({}), "an empty dict"),
    "an empty state dict": ("pt", lambda: saved({}), "an empty dict"),
    "list": ("pt", lambda: saved([1]), "a list"),
    "layer of 5,000 digits": (
        "pt",
        lambda: saved({NAME.format("9" * 5000, 0): torch.zeros(1, 1)}),
        "'999",
    ),
    "head far off": ("pt", lambda: saved({NAME.format(0, 999999): torch.zeros(1, 1)}), "999999"),
}


def refusal(file):
    with pytest.raises(Refusal) as caught:
        read_layers(file)
    text = str(caught.value)
    assert "weights_only" not in text
    assert all(line.isprintable() for line in text.split("\n"))
    return caught.value.problems[0]


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    suffix, content, found = FILES[name]
    file = tmp_path / f"a.{suffix}"
    file.write_bytes(content())
    assert found in refusal(file).found
    assert not (tmp_path / "harm").exists()


def test_files_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "a.pt")
    assert refusal(tmp_path / "a.pt").found == "a FIFO"
    with (tmp_path / "a.pkl").open("wb") as file:
        os.truncate(file.fileno(), 2**40)
    assert refusal(tmp_path / "a.pkl").expected.endswith(" of at most 8,589,934,592 bytes")


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
    names = [f"{side}_{part}" for side in ("key", "query") for part in ("matrix", "bias")]
    for place, values in enumerate([numbers, np.asfortranarray(numbers)]):
        file = tmp_path / f"{place}.pkl"
        lists = {name: [values.astype(dtype)] for name in names}
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


def test_parameters_are_read_as_tensors(tmp_path):
    parameter = torch.nn.Parameter(torch.ones(1, 2, 3))
    names = [f"{side}_{part}" for side in ("key", "query") for part in ("matrix", "bias")]
    lists = OrderedDict((name, [parameter]) for name in names)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({0: lists}))
    assert all(type(each) is torch.Tensor for each in read_layers(tmp_path / "a.pkl")[0].values())


def files_to_change():
    state = modules(count=1, heads=1, dim=2, layers=1, bits=2).state_dict()
    yield "pt", saved(state)
    yield "pt", saved(state, _use_new_zipfile_serialization=False)
    yield "pkl", pickle.dumps(converted(modules(count=1, heads=1, dim=2, layers=1, bits=2)))


CHANGES = st.lists(
    st.tuples(st.integers(0, 2**16), st.integers(0, 6), st.binary(max_size=6)),
    min_size=1,
    max_size=3,
)


@given(st.sampled_from(list(files_to_change())), CHANGES)
@settings(max_examples=300, deadline=None)
def test_any_change_of_a_file(tmp_path_factory, original, changes):
    kind, content = original
    for place, length, other in changes:
        place %= len(content) + 1
        content = content[:place] + other + content[place + length :]
    file = tmp_path_factory.getbasetemp() / f"changed.{kind}"
    file.write_bytes(content)
    text, layers = "", {}
    try:
        layers = read_layers(file)
    except Refusal as error:
        text = str(error)
    assert all(line.isprintable() for line in text.split("\n"))
    for tensors in layers.values():
        assert all(type(tensor) is torch.Tensor for tensor in tensors.values())
