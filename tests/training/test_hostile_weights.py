"""Hash weights from strangers: whatever a card or its tensors hold, weights or one refusal."""

import copy
import functools
import hashlib
import json
import os
import struct
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from hata_sglang.errors import Refusal
from hata_sglang.weights import load_weights, save_weights
from hata_sglang.weights.check import card_line
from test_weights import METHODS, make_set


@functools.cache
def saved(name):
    """Card and tensors of a set, as files hold them."""
    card, encoders = make_set(name)
    with tempfile.TemporaryDirectory() as folder:
        save_weights(folder, card, encoders)
        files = [Path(folder) / name for name in ("card.json", "hash.safetensors")]
        return tuple(file.read_bytes() for file in files)


def made(name="hata"):
    """Card, as JSON has it, and tensors of a set."""
    card, tensors = saved(name)
    return json.loads(card), tensors


def write(folder, card, tensors):
    """Write a set; the card is text, bytes, or made JSON, with the SHA-256 of the tensors."""
    (folder / "hash.safetensors").write_bytes(tensors)
    if isinstance(card, dict) and "sha256" in card:
        card = card | {"sha256": hashlib.sha256(tensors).hexdigest()}
    text = card if isinstance(card, str | bytes) else json.dumps(card)
    (folder / "card.json").write_bytes(text if isinstance(text, bytes) else text.encode())


def use(folder):
    """What a server does with a set, up to its encoders."""
    weights = load_weights(folder)
    for layer in weights.layers:
        weights.encoder(layer)
    assert card_line(weights.card).isprintable()


def refusal(folder, bounded):
    with bounded(memory=2**28), pytest.raises(Refusal) as caught:
        use(folder)
    assert all(line.isprintable() for line in str(caught.value).split("\n"))
    return caught.value.problems


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"name": "\xff"}', "a card of hash weights"),
        ("[" * 100_000, "a card of hash weights"),
        ('{"a":' * 50_000, "a card of hash weights"),
        ('{"version": ' + "9" * 5000 + "}", "a card of hash weights"),
        ("{" + ",".join(f'"{n}": 1' for n in range(80_000)) + "}", "a card of hash weights"),
        (" " * 2**21, "a card of hash weights of at most 1,048,576 bytes"),
        ('{"\\u001b[2J": 1}', "a card of hash weights"),
    ],
    ids=range(7),
)
def test_a_card_that_is_none(tmp_path, bounded, content, words):
    write(tmp_path, content, made()[1])
    (problem,) = refusal(tmp_path, bounded)
    assert problem.expected == words


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layers": list(range(10_000)) * 10}, "layers: Tuple should have at most 10000 items"),
        ({"layers": []}, "layers: Tuple should have at least 1 item"),
        ({"layers": [10**12]}, "layers.0: Input should be less than or equal to 9999"),
        ({"shapes": {str(n): [1] for n in range(9999)}}, "shapes: Dictionary should have at most"),
        ({"shapes": {"x" * 9999: [1]}}, "String should have at most 255 characters"),
        ({"shapes": {"weight": [2, 16, 0]}}, "should be greater than or equal to 1"),
        ({"shapes": {"weight": [2**40] * 3}}, "less than or equal to 2147483647"),
        ({"shapes": {"weight": [1] * 99}}, "Tuple should have at most 8 items"),
        ({"shapes": {"weight": []}}, "Tuple should have at least 1 item"),
        ({"bits": 0}, "bits: Input should be greater than or equal to 1"),
        ({"name": "x" * 999}, "name: String should have at most 255 characters"),
    ],
    ids=range(11),
)
def test_a_card_beyond_its_bounds(tmp_path, bounded, change, words):
    card, tensors = made()
    write(tmp_path, card | change, tensors)
    (problem,) = refusal(tmp_path, bounded)
    assert problem.expected == "a card of hash weights"
    assert words in problem.found


def test_heads_of_a_fingerprint_are_not_zero(tmp_path, bounded):
    card, tensors = made()
    card["fingerprint"]["num_key_value_heads"] = 0
    write(tmp_path, card, tensors)
    assert "num_key_value_heads: Input should be" in refusal(tmp_path, bounded)[0].found


def test_a_clip_that_is_no_float(tmp_path, bounded):
    card, tensors = made("asymmetric")
    write(tmp_path, card | {"options": card["options"] | {"clip": 10**400}}, tensors)
    assert refusal(tmp_path, bounded)[0].expected.startswith("tensors and options of method asym")


def test_tensors_are_not_larger_than_their_card_says(tmp_path, bounded):
    write(tmp_path, *made())
    os.truncate(tmp_path / "hash.safetensors", 2**35)
    (problem,) = refusal(tmp_path, bounded)
    assert problem.expected.startswith("the tensors of the shapes in card.json of at most 1,0")
    assert problem.found == f"{2**35:,} bytes"


def test_tensors_are_a_regular_file(tmp_path, bounded):
    write(tmp_path, *made())
    os.unlink(tmp_path / "hash.safetensors")
    os.mkfifo(tmp_path / "hash.safetensors")
    assert refusal(tmp_path, bounded)[0].found == "a FIFO"


@pytest.mark.parametrize(
    ("heads", "found"),
    [([0, 1], "zeros alone in heads 0-1"), ([1], "zeros alone in heads 1")],
)
def test_weights_that_say_nothing(tmp_path, bounded, heads, found):
    card, _ = made()
    tensors = {f"layers.{layer}.weight": torch.ones(2, 16, 32) for layer in (0, 1)}
    tensors["layers.1.weight"][heads] = 0
    write(tmp_path, card, save(tensors))
    (problem,) = refusal(tmp_path, bounded)
    assert problem.setting == "hash weights tiny, layers.1.weight"
    assert (problem.expected, problem.found) == ("numbers other than zero in every head", found)


def test_biases_may_be_zero(tmp_path):
    card, encoders = make_set("asymmetric")
    for encoder in encoders.values():
        encoder.key_bias.zero_()
    save_weights(tmp_path, card, encoders)
    use(tmp_path)


@pytest.mark.parametrize("value", [1e-30, 70.0])
def test_a_bias_by_distance_lowers_scores(tmp_path, bounded, value):
    card, tensors = made("asymmetric biased")
    named = load(tensors)
    named["layers.1.distance_bias"][1, 7] = value
    write(tmp_path, card, save(named))
    (problem,) = refusal(tmp_path, bounded)
    assert problem.expected == "tensors and options of method asymmetric for tiny-llama"
    assert problem.found.startswith("distance_bias: expected finite numbers, none above 0, found [")


def test_a_name_with_a_number_of_5000_digits(tmp_path, bounded):
    card, _ = made()
    write(tmp_path, card, save({f"layers.{'9' * 5000}.weight": torch.ones(2, 16, 32)}))
    assert len(refusal(tmp_path, bounded)) == 3


def test_what_a_card_says_reaches_no_terminal_raw(tmp_path):
    card, tensors = made()
    write(tmp_path, card | {"model": "a\x1b[2J\nb"}, tensors)
    assert "layers of a\\x1b[2J\\nb" in card_line(load_weights(tmp_path).card)


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=4),
    st.sampled_from([0, -1, 1, 2, 8, 16, 32, 64, 2**31, 10**30, "hata", "asymmetric", [], {}, [0]]),
    st.just([[[]]] * 3),
    st.just({"weight": [2, 16, 32]}),
)


@given(st.data())
@settings(max_examples=300)
def test_any_change_of_a_card(tmp_path_factory, bounded, data):
    card, tensors = made(data.draw(st.sampled_from(list(METHODS))))
    for _ in range(data.draw(st.integers(1, 2))):
        place = card
        # Down to any part of the card, and another value there, or a key more or less.
        while True:
            keys = list(place) if isinstance(place, dict) else range(len(place))
            key = data.draw(st.sampled_from(keys))
            if isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
                place = place[key]
            else:
                break
        change = data.draw(st.sampled_from(["set", "drop", "add"]))
        if change == "drop":
            del place[key]
        elif change == "set" or isinstance(place, list):
            place[key] = copy.deepcopy(data.draw(ODD))
        else:
            place[data.draw(st.text(max_size=4))] = copy.deepcopy(data.draw(ODD))
        if not card:
            return
    folder = tmp_path_factory.getbasetemp() / "cards"
    folder.mkdir(exist_ok=True)
    write(folder, card, tensors)
    refused_or_used(folder, bounded)


@given(st.data())
@settings(max_examples=200)
def test_any_change_of_the_tensors(tmp_path_factory, bounded, data):
    card, tensors = made(data.draw(st.sampled_from(list(METHODS))))
    header = struct.unpack("<Q", tensors[:8])[0]
    place = data.draw(st.integers(0, header + 16))
    length, other = data.draw(st.integers(0, 8)), data.draw(st.binary(max_size=8))
    folder = tmp_path_factory.getbasetemp() / "tensors"
    folder.mkdir(exist_ok=True)
    write(folder, card, tensors[:place] + other + tensors[place + length :])
    refused_or_used(folder, bounded)


def refused_or_used(folder, bounded):
    text = ""
    with bounded(seconds=5):
        try:
            use(folder)
        except Refusal as error:
            text = str(error)
    assert all(line.isprintable() for line in text.split("\n"))
