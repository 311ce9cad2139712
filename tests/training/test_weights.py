"""Hash weights on disk: what is written comes back, and damage is refused with its reason."""

import hashlib
import json
import re
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from hata_sglang.errors import Refusal
from hata_sglang.weights import (
    Card,
    Fingerprint,
    HeldOut,
    TrainingData,
    check_against_model,
    load_weights,
    save_weights,
    shipped_weights,
)

CONFIG = SimpleNamespace(
    model_type="llama",
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    vocab_size=256,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
)


def make_card(**changes):
    fields = {
        "name": "tiny",
        "model": "tiny-llama",
        "fingerprint": Fingerprint.of(CONFIG),
        "revision": "weights-sha256:0",
        "method": "hata",
        "bits": 32,
        "layers": (0, 1),
        "shape": (2, 16, 32),
        "training_data": TrainingData(
            description="words",
            files={"a.txt": "0"},
            sequences=1,
            tokens=2,
            held_out_files={},
            held_out_sequences=1,
            held_out_tokens=2,
        ),
        "seed": 0,
        "recipe": {"objective": "attention", "steps": 5},
        "held_out": (
            HeldOut(
                budget=8,
                sink=1,
                recent=1,
                mean={"exact": 0.9, "hata": 0.8},
                per_layer={"exact": {0: 0.9, 1: 0.9}, "hata": {0: 0.8, 1: 0.8}},
            ),
        ),
        "sha256": "",
        "created_by": {"torch": "2"},
    }
    return Card(**(fields | changes))


def make_tensors():
    generator = torch.Generator().manual_seed(0)
    return {layer: torch.randn(2, 16, 32, generator=generator) for layer in (0, 1)}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "tiny"
    save_weights(folder, make_card(), make_tensors())
    return folder


def replace_tensors(folder, tensors):
    """Write other tensors, with a card that has their SHA-256."""
    save_file(tensors, folder / "hash.safetensors")
    card = json.loads((folder / "card.json").read_text())
    card["sha256"] = hashlib.sha256((folder / "hash.safetensors").read_bytes()).hexdigest()
    (folder / "card.json").write_text(json.dumps(card))


def test_what_is_saved_comes_back(folder):
    weights = load_weights(folder)
    for layer, tensor in make_tensors().items():
        assert torch.equal(weights.tensors[layer], tensor)
    content = (folder / "hash.safetensors").read_bytes()
    assert weights.card == make_card(sha256=hashlib.sha256(content).hexdigest())
    assert load_weights(str(folder)).card == weights.card


def test_unknown_name_lists_places_shipped_names_and_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refusal) as caught:
        load_weights("no-such-weights")
    message = str(caught.value)
    assert str(tmp_path / "no-such-weights") in message
    assert "hata_weights" in message
    assert "hata-sglang train --model DIR --data FILE" in message
    for name in shipped_weights():
        assert name in message


def test_a_path_does_not_reach_into_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refusal, match="a folder of hash weights"):
        load_weights("../hata_weights/" + shipped_weights()[0])


def test_a_flipped_byte_is_refused(folder):
    path = folder / "hash.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(Refusal, match=r"expected SHA-256 [0-9a-f]{64} as in its card, found"):
        load_weights(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            lambda t: t.pop("layers.1.weight"),
            "layer 1: expected a tensor, as in the card, found none",
            id="missing-layer",
        ),
        pytest.param(
            lambda t: t.update({"layers.2.weight": torch.zeros(2, 16, 32)}),
            "layer 2: expected no tensor, as in the card, found one",
            id="layer-too-many",
        ),
        pytest.param(
            lambda t: t.update({"layers.0.weight": torch.zeros(2, 16, 32).half()}),
            "layer 0: expected dtype float32, found float16",
            id="dtype",
        ),
        pytest.param(
            lambda t: t.update({"layers.0.weight": torch.zeros(2, 16, 64)}),
            "layer 0: expected shape [2, 16, 32], found [2, 16, 64]",
            id="shape",
        ),
        pytest.param(
            lambda t: t["layers.0.weight"][0, 0].fill_(torch.nan),
            "layer 0: expected finite numbers, found 32 NaN or infinite",
            id="nan",
        ),
        pytest.param(
            lambda t: t.update({"other": torch.zeros(1)}),
            "expected tensors named layers.{i}.weight, found 'other'",
            id="name",
        ),
    ],
)
def test_tensors_unlike_the_card_are_refused(folder, change, message):
    tensors = {f"layers.{i}.weight": t for i, t in make_tensors().items()}
    change(tensors)
    replace_tensors(folder, tensors)
    with pytest.raises(Refusal, match=re.escape(message)):
        load_weights(folder)


def test_every_bad_layer_is_listed(folder):
    replace_tensors(folder, {"layers.7.weight": torch.zeros(1)})
    with pytest.raises(Refusal) as caught:
        load_weights(folder)
    assert len(caught.value.problems) == 3  # 0 and 1 missing, 7 too many


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(None, "card.json: expected a readable file", id="missing"),
        pytest.param("{", "card.json: expected a card of hash weights", id="not-json"),
        pytest.param("{}", "found name: Field required", id="empty"),
    ],
)
def test_a_bad_card_is_refused(folder, content, message):
    (folder / "card.json").unlink()
    if content is not None:
        (folder / "card.json").write_text(content)
    with pytest.raises(Refusal, match=re.escape(message)):
        load_weights(folder)


def test_a_card_of_another_version_is_refused(folder):
    card = json.loads((folder / "card.json").read_text()) | {"version": 2}
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(Refusal, match="expected version 1, found version 2"):
        load_weights(folder)


def test_saving_refuses_what_loading_would(tmp_path):
    tensors = make_tensors()
    tensors[1][0, 0, 0] = torch.inf
    with pytest.raises(Refusal, match="layer 1: expected finite numbers"):
        save_weights(tmp_path / "x", make_card(), tensors)
    assert not (tmp_path / "x").exists()


def test_weights_fit_the_model_they_were_trained_on(folder):
    assert check_against_model(load_weights(folder), CONFIG) == []


def test_every_difference_to_the_model_is_listed(folder):
    other = SimpleNamespace(**vars(CONFIG))
    other.num_key_value_heads, other.rope_parameters = 4, {"rope_theta": 5e5}
    problems = check_against_model(load_weights(folder), other)
    assert [str(p) for p in problems] == [
        "model for weights tiny, num_key_value_heads: expected 2 (trained on tiny-llama), found 4",
        "model for weights tiny, rope_theta: expected 10000.0 (trained on tiny-llama), "
        "found 500000.0",
    ]


def test_fingerprint_reads_configs_of_transformers_4():
    old = SimpleNamespace(**vars(CONFIG))
    del old.rope_parameters, old.head_dim
    old.rope_theta = 10000.0
    assert Fingerprint.of(old) == Fingerprint.of(CONFIG)


def test_shipped_weights_load_and_beat_random_hyperplanes_in_every_layer():
    assert "smollm2-135m-instruct-hata-128b" in shipped_weights()
    for name in shipped_weights():
        card = load_weights(name).card
        assert card.name == name
        for held_out in card.held_out:
            assert held_out.mean["hata"] > held_out.mean["streaming"]
            for layer in card.layers:
                masses = {selector: by[layer] for selector, by in held_out.per_layer.items()}
                assert masses["exact"] >= masses["hata"] > masses["random"], (name, layer)
