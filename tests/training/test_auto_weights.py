"""``weights: auto``: what ships, what is cached, what is made, and what is left behind."""

import argparse
import json
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from hata_sglang.config import HataConfig
from hata_sglang.errors import HataError, Refusal
from hata_sglang.seams import versions
from hata_sglang.seams.session import CARRIED, served_model
from hata_sglang.shape import AttentionShape
from hata_sglang.training.checkpoint import read_config
from hata_sglang.training.cli import add_train_arguments
from hata_sglang.weights import auto, load_weights
from hata_sglang.weights.auto import ServedModel
from hata_sglang.weights.encoders import load_encoders

SHAPE = AttentionShape(4, 2, 16)
WANTED = auto.Wanted("hata", 32)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HATA_CACHE", str(tmp_path / "cache"))
    auto.checkpoint_digest.cache_clear()
    return tmp_path / "cache"


def served(folder, overrides=None):
    overrides = overrides or {}
    words = ["--json-model-override-args", json.dumps(overrides)]
    return ServedModel(read_config(folder, words), folder, overrides)


@pytest.fixture
def plans():
    settings = {"method": "hata", "bits": 32, "budget": 64, "sink": 2, "recent": 2}
    return HataConfig.parse(settings | {"dense_layers": [0]}).resolve(2, 512)


@pytest.fixture
def trainings(monkeypatch):
    """Commands that calibration ran, of few steps and short sequences."""
    seen = []
    run = subprocess.run
    monkeypatch.setenv("HATA_CALIBRATION", "--steps 6 --sequence-length 120 --own-tokens 240")
    monkeypatch.setattr(
        auto.subprocess, "run", lambda command, **more: seen.append(command) or run(command, **more)
    )
    return seen


@pytest.mark.slow
def test_a_set_is_made_once_and_then_found(model_dir, cache, plans, trainings):
    config = read_config(model_dir)
    where = (SHAPE.group, ServedModel(config, model_dir))
    assert auto.missing_sets(plans, *where) == [WANTED]
    with pytest.raises(Refusal, match=r"weights: auto: expected a set of hata, 32 bits, .*server"):
        auto.with_sets(plans, *where)
    auto.make_missing(plans, *where, "cpu")
    auto.make_missing(plans, *where, "cpu")
    assert len(trainings) == 1
    assert auto.missing_sets(plans, *where) == []
    dense, sparse = auto.with_sets(plans, *where)
    assert dense.weights is None
    card = load_weights(sparse.weights).card
    assert (card.method, card.bits, card.model) == ("hata", 32, "tiny-llama")
    assert "texts of hata-sglang" in card.training_data.description
    assert "(MIT)" in card.training_data.description
    assert list(load_encoders(plans, SHAPE, ServedModel(config, model_dir)).encoders) == [1]
    assert [path.name for path in Path(sparse.weights).parent.iterdir()] == ["hata-32b"]


def test_a_failed_calibration_leaves_nothing_behind(model_dir, cache, plans, monkeypatch):
    def fail(command, **_):
        out = Path(command[command.index("--out") + 1])
        out.mkdir()
        (out / "hash.safetensors").write_bytes(b"half")
        return SimpleNamespace(returncode=2)

    monkeypatch.setattr(auto.subprocess, "run", fail)
    with pytest.raises(HataError, match=r"weights: auto: expected `.* train --model .*code 2"):
        auto.make_missing(plans, SHAPE.group, served(model_dir), "cpu")
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_an_interrupted_calibration_leaves_nothing_behind(model_dir, cache, plans, monkeypatch):
    def interrupt(command, **_):
        Path(command[command.index("--out") + 1]).mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(auto.subprocess, "run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        auto.make_missing(plans, SHAPE.group, served(model_dir), "cpu")
    assert not auto.cached_set(served(model_dir), WANTED).exists()
    assert [path.name for path in cache.rglob("*") if "part" in path.name] == []


def test_a_name_on_a_hub_is_looked_up_as_the_server_does(tmp_path, monkeypatch):
    asked = []

    def snapshot_download(name, *, revision, allow_patterns):
        asked.append((name, revision))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    model = SimpleNamespace(hf_config=None, model_path="some/model", revision="v2")
    model.model_override_args = {CARRIED: "ours", "rope_theta": 5}
    served = served_model(model)
    assert (served.folder, served.overrides) == (tmp_path, {"rope_theta": 5})
    assert asked == [("some/model", "v2")]


def test_a_shipped_set_serves_its_own_checkpoint(demo_model, cache):
    model = served(demo_model)
    for method, bits in (("asymmetric", 128), ("asymmetric", 64), ("hata", 128)):
        found = auto.find_set(model, auto.Wanted(method, bits))
        assert found == f"smollm2-135m-instruct-{method}-{bits}b"
    assert auto.find_set(model, auto.Wanted("asymmetric", 96)) is None


def test_a_shipped_set_is_not_for_a_model_of_its_shape(demo_model, cache, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for path in demo_model.iterdir():
        if path.name != "hata-demo-model.json" and path.suffix != ".safetensors":
            shutil.copy(path, other)
    (other / "model.safetensors").write_bytes(os.urandom(1000))
    assert auto.find_set(served(other), auto.Wanted("asymmetric", 128)) is None


def test_checkpoints_that_differ_anywhere_have_sets_of_their_own(model_dir, cache, tmp_path):
    def digest(change=None):
        folder = tmp_path / "copy"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(model_dir, folder)
        if change is not None:
            change(folder)
        auto.checkpoint_digest.cache_clear()
        return auto.cached_set(served(folder), WANTED)

    def change_weights(folder):
        content = bytearray((folder / "model.safetensors").read_bytes())
        content[len(content) // 2] ^= 1
        (folder / "model.safetensors").write_bytes(content)

    def change_config(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"rope_theta": 5.0}))

    assert digest() == digest()
    assert len({digest(), digest(change_weights), digest(change_config)}) == 3


def test_a_changed_config_has_a_set_of_its_own(model_dir, demo_model, cache):
    changed = served(model_dir, {"rope_theta": 5.0})
    assert auto.cached_set(changed, WANTED) == auto.cached_set(changed, WANTED)
    assert auto.cached_set(changed, WANTED) != auto.cached_set(served(model_dir), WANTED)
    wanted = auto.Wanted("asymmetric", 128)
    assert auto.find_set(served(demo_model), wanted) is not None
    assert auto.find_set(served(demo_model, {"rope_theta": 5.0}), wanted) is None


def test_calibration_loads_the_model_as_the_server_does(model_dir, cache, plans, monkeypatch):
    seen = []
    done = SimpleNamespace(returncode=2)
    monkeypatch.setattr(auto.subprocess, "run", lambda command, **_: seen.append(command) or done)
    args = SimpleNamespace(
        dtype="float16", quantization=None, load_format="auto",
        model_loader_extra_config="{}", trust_remote_code=True,
    )  # fmt: skip
    words = versions.model_arguments(args, {"rope_theta": 5.0})
    with pytest.raises(HataError, match="weights: auto"):
        auto.make_missing(plans, SHAPE.group, served(model_dir), "cpu", words)
    parser = argparse.ArgumentParser()
    add_train_arguments(parser)
    # What stands behind `python -m hata_sglang.cli train`.
    parsed = parser.parse_args(seen[0][4:])
    override = ["--json-model-override-args", '{"rope_theta": 5.0}']
    assert parsed.sglang_args == ["--dtype", "float16", "--trust-remote-code", *override]
    assert read_config(model_dir, parsed.sglang_args).rope_theta == 5.0
