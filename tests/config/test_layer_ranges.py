"""Layer numbers and ranges as written in YAML."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hata_sglang.config.layer_ranges import (
    MAX_LAYER,
    format_layers,
    format_range,
    layers_of,
    parse_range,
)


@pytest.mark.parametrize(
    ("text", "layers"),
    [(5, [5]), ("5", [5]), ("2-4", [2, 3, 4]), (" 2 - 4 ", [2, 3, 4]), ("3-3", [3]), (0, [0])],
)
def test_parses(text, layers):
    assert list(parse_range(text)) == layers


@pytest.mark.parametrize(
    "value",
    ["15-2", "x", "", "-1", -1, "2-", "-", "1-2-3", "1,2", 2.0, True, None, [1], "٣",
     MAX_LAYER + 1, "0-1000000000", "1" * 30],
)  # fmt: skip
def test_refuses(value):
    with pytest.raises(ValueError, match="a layer number or a range"):
        parse_range(value)


@given(st.integers(0, MAX_LAYER), st.integers(0, MAX_LAYER))
def test_format_round_trips(one, other):
    layers = range(min(one, other), max(one, other) + 1)
    assert parse_range(format_range(layers)) == layers


@given(st.sets(st.integers(0, 60)))
def test_format_layers_names_each_layer_once(layers):
    text = format_layers(layers)
    named = [] if text == "none" else [n for part in text.split(", ") for n in parse_range(part)]
    assert named == sorted(layers)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60))))
def test_layers_of_ranges(ends):
    spans = [range(min(pair), max(pair) + 1) for pair in ends]
    assert layers_of(spans) == sorted({layer for span in spans for layer in span})
    assert layers_of([range(MAX_LAYER, MAX_LAYER + 1)]) == [MAX_LAYER]
