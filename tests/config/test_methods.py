"""The registry: this package's methods, those of others, and what is refused."""

from __future__ import annotations

import importlib

import pytest

from hata_kernels.encoders import LinearEncoder
from hata_sglang import methods as room
from hata_sglang.errors import Refusal
from hata_sglang.methods import Method, method_names, methods


class EntryPoint:
    """What importlib.metadata returns."""

    name, value = "theirs", "their_module:METHOD"

    def __init__(self, found):
        self.found = found

    def load(self):
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


@pytest.fixture
def with_entry_point(monkeypatch):
    """Function that gives the methods there are beside one entry point."""

    def found(thing):
        monkeypatch.setattr(room, "entry_points", lambda group: [EntryPoint(thing)])
        return methods.__wrapped__()

    return found


def test_every_file_is_a_method():
    """The list is the folder: each file but the base, named as its method."""
    from pathlib import Path

    files = {path.stem for path in Path(room.__file__).parent.glob("*.py")}
    assert set(methods()) == files - {"__init__", "base"}  # and `learning` is a folder
    for name, method in methods().items():
        assert importlib.import_module(f"hata_sglang.methods.{name}").METHOD is method
        assert method.name == name


def test_kinds_of_methods():
    assert method_names(trained=True) == ["asymmetric", "hashattention", "hata", "rotate"]
    assert method_names(trainable=True) == method_names(trained=True)
    assert method_names(coded=True, trained=False) == method_names(seeded=True) == ["random"]
    assert method_names(ranks="scores") == ["exact"]
    assert method_names(ranks="positions") == ["streaming"]


def test_methods_of_other_packages(with_entry_point):
    theirs = Method(name="theirs", ranks="scores", summary="like exact")
    assert with_entry_point(theirs) == {**methods(), "theirs": theirs}


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (ImportError("no module named torhc"), "Method, found ImportError: no module named torhc"),
        ("hata", "expected a hata_sglang.methods.Method, found str"),
        (Method(name="hata", ranks="scores", summary=""), "not hata, found a second one"),
    ],
    ids=["broken", "no method", "a name that exists"],
)
def test_what_is_no_method_is_refused(with_entry_point, thing, message):
    with pytest.raises(Refusal) as refusal:
        with_entry_point(thing)
    assert "entry point theirs (their_module:METHOD)" in str(refusal.value)
    assert message in str(refusal.value)


@pytest.mark.parametrize(("ranks", "encoder"), [("codes", None), ("scores", LinearEncoder)])
def test_codes_need_an_encoder(ranks, encoder):
    with pytest.raises(ValueError, match="expected an encoder for codes and only for them"):
        Method(name="mine", ranks=ranks, summary="", encoder=encoder)
