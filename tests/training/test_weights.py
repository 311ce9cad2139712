"""Hash weights on disk: what is written comes back, and damage is refused with its reason."""

import dataclasses
import hashlib
import json
import re
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from hata_sglang.errors import Refusal
from hata_sglang.methods import methods
from hata_sglang.weights import (
    Card,
    Fingerprint,
    HeldOut,
    TrainingData,
    check_against_model,
    load_weights,
    read_card,
    save_weights,
    shipped_weights,
)
from hata_sglang.weights.check import card_line

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
        "options": {"scale_bits": 0},
        "shapes": {"weight": (2, 16, 32)},
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


def make_encoders(tensors=None, method="hata", **options):
    """Encoders of the tensors of each layer; default: those of `make_tensors`."""
    layers = tensors or {layer: {"weight": t} for layer, t in make_tensors().items()}
    return {
        layer: methods()[method].encoder.from_tensors(
            named, num_kv_heads=2, group=2, head_dim=16, **options
        )
        for layer, named in layers.items()
    }


def randoms(**shapes):
    """Two layers of random tensors of these shapes; ``__`` in a name stands for a dot.

    Above 0, as scales are; that by distance below 0.
    """
    generator = torch.Generator().manual_seed(1)
    return {
        layer: {
            name.replace("__", "."): (torch.rand(shape, generator=generator) + 0.01)
            * (-1 if name == "distance_bias" else 1)
            for name, shape in shapes.items()
        }
        for layer in (0, 1)
    }


#: Of every method: tensors of two layers, and options.
METHODS = {
    "hata": (randoms(weight=(2, 16, 32)), {"scale_bits": 0}),
    "hata with scales": (
        randoms(weight=(2, 16, 32), scale_step=(2,)),
        {"scale_bits": 8},
    ),
    "asymmetric": (
        randoms(
            key_weight=(2, 16, 64),
            key_bias=(2, 64),
            query_weight=(2, 32, 64),
            query_bias=(2, 64),
            scale_step=(2,),
        ),
        {"query_bits": 3, "clip": 2.25, "scale_bits": 16},
    ),
    "asymmetric biased": (
        randoms(
            key_weight=(2, 16, 32),
            key_bias=(2, 32),
            query_weight=(2, 32, 32),
            query_bias=(2, 32),
            distance_bias=(2, 44),
        ),
        {},
    ),
    "hashattention": (
        randoms(
            key__0__weight=(4, 16, 8),
            key__0__bias=(4, 8),
            key__1__weight=(4, 8, 32),
            key__1__bias=(4, 32),
            query__0__weight=(4, 16, 8),
            query__0__bias=(4, 8),
            query__1__weight=(4, 8, 32),
            query__1__bias=(4, 32),
        ),
        {},
    ),
}


def make_set(name):
    """Card and encoders of one entry of `METHODS`."""
    tensors, options = METHODS[name]
    encoders = make_encoders(tensors, name.split()[0], **options)
    card = make_card(
        method=name.split()[0],
        bits=encoders[0].bits,
        options=encoders[0].options(),
        shapes={key: tuple(t.shape) for key, t in tensors[0].items()},
    )
    return card, encoders


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "tiny"
    save_weights(folder, make_card(), make_encoders())
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
        assert torch.equal(weights.layers[layer]["weight"], tensor)
    content = (folder / "hash.safetensors").read_bytes()
    assert weights.card == make_card(sha256=hashlib.sha256(content).hexdigest())
    assert load_weights(str(folder)).card == weights.card == read_card(folder)


@pytest.mark.parametrize("name", METHODS)
def test_encoders_of_every_method_come_back(tmp_path, name):
    card, encoders = make_set(name)
    save_weights(tmp_path, card, encoders)
    weights = load_weights(tmp_path)
    keys, queries = torch.randn(5, 2, 16), torch.randn(5, 4, 16)
    for layer, saved in encoders.items():
        loaded = weights.encoder(layer)
        assert (loaded.bits, loaded.options()) == (saved.bits, saved.options())
        assert torch.equal(loaded.key_bits(keys), saved.key_bits(keys))
        assert torch.equal(loaded.query_bits_of(queries), saved.query_bits_of(queries))


def make_left_out():
    """Of two layers, 4 query heads: rising with the ratio."""
    return {layer: torch.linspace(0, 0.6, 8).repeat(4, 1) for layer in (0, 1)}


def test_weights_of_the_mean_come_back_in_float32_whatever_the_rest(tmp_path, folder):
    card = make_card(left_out=True)
    save_weights(tmp_path / "mean", card, make_encoders(), torch.float16, make_left_out())
    loaded = load_weights(tmp_path / "mean")
    for layer, weights in make_left_out().items():
        assert torch.equal(loaded.left_out[layer], weights)
        assert loaded.layers[layer].keys() == {"weight"}
        loaded.encoder(layer)
    assert load_weights(folder).left_out == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop(1), "layers.1.left_out: expected a tensor, as in the card, found none"),
        (lambda w: w.update({1: w[1][:, :7]}), "expected shape [4, 8], found [4, 7]"),
        (lambda w: w[1][2, 3].fill_(torch.nan), "expected finite numbers, found 1 NaN or infinite"),
        (lambda w: w[1][2, 3].fill_(1.5), "expected weights from 0 to 1, found 0 to 1.5"),
        (lambda w: w[1][2, 3].fill_(-0.1), "expected weights from 0 to 1, found -0.1 to 0.6"),
        (lambda w: w[1][2, 0].fill_(0.1), "expected 0 where nothing is left out (first column)"),
    ],
    ids=["missing", "shape", "nan", "above", "below", "first"],
)
def test_weights_of_the_mean_that_make_no_sense_are_refused(tmp_path, change, message):
    left_out = make_left_out()
    change(left_out)
    with pytest.raises(Refusal, match=re.escape(message)):
        save_weights(tmp_path, make_card(left_out=True), make_encoders(), left_out=left_out)
    with pytest.raises(Refusal, match="left_out: expected no tensor, as in the card, found one"):
        save_weights(tmp_path, make_card(), make_encoders(), left_out=make_left_out())


def test_float16_takes_half_the_space_and_loads_as_float32(tmp_path, folder):
    encoders = make_encoders()
    save_weights(tmp_path / "half", make_card(), encoders, torch.float16)
    loaded = load_weights(tmp_path / "half").layers
    for layer, encoder in encoders.items():
        (tensor,) = encoder.tensors().values()
        assert loaded[layer]["weight"].dtype == torch.float32
        assert torch.equal(loaded[layer]["weight"], tensor.half().float())
    sizes = [(path / "hash.safetensors").stat().st_size for path in (tmp_path / "half", folder)]
    assert sizes[1] - sizes[0] == pytest.approx(2 * 2 * 16 * 32 * 2, abs=8)  # two layers, 2 bytes
    with pytest.raises(Refusal, match="expected float32 or float16, found bfloat16"):
        save_weights(tmp_path / "x", make_card(), encoders, torch.bfloat16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "quest"}, "expected asymmetric, hashattention, hata, random or rotate, found"),
        ({"method": "asymmetric"}, "tensors and options of method asymmetric for tiny-llama"),
        ({"options": {"clip": 1.0}}, "tensors and options of method hata for tiny-llama"),
        ({"bits": 64}, "layer 0: expected 64 bits, as in the card, found 32"),
    ],
)
def test_a_card_unlike_its_tensors_makes_no_encoder(folder, changes, message):
    weights = load_weights(folder)
    other = dataclasses.replace(weights, card=weights.card.model_copy(update=changes))
    with pytest.raises(Refusal, match=message):
        other.encoder(0)


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
            "layers.1.weight: expected a tensor, as in the card, found none",
            id="missing-layer",
        ),
        pytest.param(
            lambda t: t.update({"layers.2.weight": torch.zeros(2, 16, 32)}),
            "layers.2.weight: expected no tensor, as in the card, found one",
            id="layer-too-many",
        ),
        pytest.param(
            lambda t: t.update({"layers.0.bias": torch.zeros(2, 32)}),
            "layers.0.bias: expected no tensor, as in the card, found one",
            id="tensor-too-many",
        ),
        pytest.param(
            lambda t: t.update({"layers.0.weight": torch.zeros(2, 16, 32).bfloat16()}),
            "layers.0.weight: expected dtype float32 or float16, found bfloat16",
            id="dtype",
        ),
        pytest.param(
            lambda t: t.update({"layers.0.weight": torch.zeros(2, 16, 64)}),
            "layers.0.weight: expected shape [2, 16, 32], found [2, 16, 64]",
            id="shape",
        ),
        pytest.param(
            lambda t: t["layers.0.weight"][0, 0].fill_(torch.nan),
            "layers.0.weight: expected finite numbers, found 32 NaN or infinite",
            id="nan",
        ),
        pytest.param(
            lambda t: t.update({"other": torch.zeros(1)}),
            "hash weights tiny, other: expected no tensor, as in the card, found one",
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
        pytest.param(None, "card of hash weights, found no such file", id="missing"),
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
    card = json.loads((folder / "card.json").read_text()) | {"version": 1}
    del card["shapes"]  # other versions have other fields; that is not the reason to give
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(Refusal, match="expected version 2, found version 1"):
        load_weights(folder)


def test_saving_refuses_what_loading_would(tmp_path):
    tensors = make_tensors()
    tensors[1][0, 0, 0] = torch.inf
    encoders = make_encoders({layer: {"weight": t} for layer, t in tensors.items()})
    with pytest.raises(Refusal, match=r"layers\.1\.weight: expected finite numbers"):
        save_weights(tmp_path / "x", make_card(), encoders)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"method": "asymmetric"},
            "layer 0, encoder: expected AsymmetricEncoder, as in the card, found",
        ),
        ({"bits": 64}, "layer 1, bits: expected 64, as in the card, found 32"),
        ({"options": {}}, "layer 0, options: expected {}, as in the card, found"),
        ({"layers": (0, 1, 2)}, "layers.2.weight: expected a tensor, as in the card, found none"),
    ],
)
def test_saving_compares_encoders_with_the_card(tmp_path, changes, message):
    with pytest.raises(Refusal, match=re.escape(message)):
        save_weights(tmp_path / "x", make_card(**changes), make_encoders())


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


def test_a_card_of_before_validation_texts_says_that_held_out_texts_chose_the_step(folder):
    path = folder / "card.json"
    content = json.loads(path.read_text())
    data = content["training_data"]
    for field in [name for name in data if name.startswith(("validation", "step"))]:
        del data[field]
    data["held_out_files"] = {"held.txt": "1"}
    path.write_text(json.dumps(content))
    card = load_weights(folder).card
    assert (card.training_data.validation_sequences, card.training_data.validation_files) == (0, {})
    assert card.training_data.step_chosen_on == "held_out"
    assert card.training_data.deciding_files == {"a.txt": "0", "held.txt": "1"}
    assert "flattered: these texts also chose the training step" in card_line(card)


def test_a_card_whose_step_validation_texts_chose_does_not_flatter_itself():
    data = make_card().training_data.model_dump() | {
        "step_chosen_on": "validation",
        "validation_files": {"v.txt": "2"},
        "held_out_files": {"held.txt": "1"},
    }
    card = make_card(training_data=TrainingData(**data))
    assert card_line(card).endswith("exact 0.900, hata 0.800 (held-out texts)")
    errors = card.held_out[0].model_copy(update={"output_error": {"hata": 0.3, "hata + mean": 0.2}})
    line = card_line(card.model_copy(update={"held_out": (errors,)}))
    assert "hata 0.800, error of the output: hata 0.300, hata + mean 0.200 (held-out" in line
    assert card.training_data.deciding_files == {"a.txt": "0", "v.txt": "2"}


def test_shipped_weights_load_and_beat_random_hyperplanes_in_every_layer():
    assert "smollm2-135m-instruct-hata-128b" in shipped_weights()
    for name in shipped_weights():
        card = load_weights(name).card
        assert card.name == name
        flattered = card.training_data.step_chosen_on == "held_out"
        assert flattered == name.startswith("smollm2")
        said = "(flattered: these texts also chose the training step)"
        assert card_line(card).endswith(said) == flattered
        for held_out in card.held_out:
            assert held_out.mean[card.method] > held_out.mean["streaming"]
            for layer in card.layers:
                masses = {selector: by[layer] for selector, by in held_out.per_layer.items()}
                assert masses["exact"] >= masses[card.method] > masses["random"], (name, layer)
