"""From settings to one plan per layer."""

import dataclasses
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hata_sglang.config import Budget, HataConfig, LayerPlan
from hata_sglang.errors import Refusal
from hata_sglang.methods import methods

EXACT = {"method": "exact", "budget": 256}
RANDOM = {"method": "random", "budget": 256}
HATA = {"method": "hata", "budget": 256, "weights": "shipped"}


def resolve(mapping, num_layers=6, context_len=8192):
    return HataConfig.parse(mapping).resolve(num_layers, context_len)


def refusals(mapping, **kwargs):
    with pytest.raises(Refusal) as caught:
        resolve(mapping, **kwargs)
    return {p.setting: (p.expected, p.found) for p in caught.value.problems}


def test_a_plan_per_layer():
    budget = Budget.model_validate(256)
    dense = [LayerPlan(n, True, None, 0, None, None, None, 0, 0) for n in (0, 1)]
    hata = (False, "hata", 64, "shipped", None, budget, 16, 64)
    sparse = [LayerPlan(n, *hata, left_out="auto") for n in (2, 3)]
    assert resolve({**HATA, "bits": 64}, num_layers=4) == (*dense, *sparse)


@pytest.mark.parametrize("method", ["exact", "streaming"])
def test_methods_without_codes(method):
    plan = resolve({**EXACT, "method": method})[2]
    assert (plan.method, plan.bits, plan.weights, plan.seed) == (method, 0, None, None)
    assert plan.code_bytes == 0


@pytest.mark.parametrize("method", ["hata", "hashattention", "asymmetric"])
def test_bits_of_a_trained_method_stand_in_its_card(method):
    plan = resolve({**HATA, "method": method})[2]
    assert (plan.method, plan.weights, plan.bits) == (method, "shipped", None)
    with pytest.raises(ValueError, match="bits of layer 2: expected a number"):
        plan.code_bytes  # noqa: B018
    settled = dataclasses.replace(plan, bits=96, scale_bits=16)
    assert settled.code_bytes == 14


def test_random_has_128_bits_unless_told():
    assert resolve(RANDOM)[2].bits == 128


@pytest.mark.parametrize(("given", "seed"), [({}, 0), ({"seed": 7}, 7)])
def test_random_has_a_seed(given, seed):
    plan = resolve({**RANDOM, "bits": 64, **given})[2]
    assert (plan.method, plan.bits, plan.weights, plan.seed) == ("random", 64, None, seed)


@pytest.mark.parametrize(("seed", "other"), [(0, 2**32 - 1), (1, 2**31), (2**32 - 2, 2**32 - 1)])
def test_every_seed_makes_hyperplanes_of_its_own(seed, other):
    sizes = {"num_kv_heads": 2, "group": 2, "head_dim": 16}
    seeds = [resolve({**RANDOM, "seed": each})[5].seed for each in (seed, other)]
    make = methods()["random"].untrained_encoder
    weights = [make(32, seed=each, layer=5, **sizes).tensors()["weight"] for each in seeds]
    assert not torch.equal(*weights)


def test_a_longer_seed_would_repeat_a_shorter_one():
    refused = {"seed": ("an integer, 0 to 2**32 - 1", str(2**32))}
    assert refusals({**RANDOM, "seed": 2**32}) == refused


def test_overrides():
    layers = {
        "0": {"dense": False},
        "2-3": {"budget": {"ratio": 0.5, "min": 100, "max": 200}, "recent": 8},
        "4": {"dense": True},
        "5": {"method": "random", "bits": 32, "sink": 0},
    }
    plans = resolve({**HATA, "bits": 256, "layers": layers, "seed": 3})
    assert [plan.dense for plan in plans] == [False, True, False, False, True, False]
    assert (plans[0].budget.tokens(999), plans[0].bits) == (256, 256)
    assert plans[2].budget == plans[3].budget == Budget(ratio=0.5, min=100, max=200)
    assert (plans[2].sink, plans[2].recent, plans[2].weights) == (16, 8, "shipped")
    last = plans[5]
    assert (last.method, last.bits, last.weights, last.seed) == ("random", 32, None, 3)
    assert (last.sink, last.recent) == (0, 64)


def test_override_to_zero_is_an_override():
    plan = resolve({**EXACT, "layers": {"3": {"sink": 0, "recent": 0}}})[3]
    assert (plan.sink, plan.recent) == (0, 0)


def test_layers_of_another_model():
    mapping = {**EXACT, "dense_layers": [0, "5-7"], "layers": {"2-9": {"dense": True}}}
    problems = refusals(mapping)
    assert problems == {
        "dense_layers": ("layers of the model (0 to 5)", "6-7"),
        "layers.2-9": ("layers of the model (0 to 5)", "2-9"),
    }


@pytest.mark.parametrize(
    "settings",
    [{"dense_layers": "0-5"}, {"layers": {"0-5": {"dense": True}}},
     {"dense_layers": [0, 1], "layers": {"2-5": {"dense": True}}}],
)  # fmt: skip
def test_all_dense_is_refused(settings):
    problems = refusals({**EXACT, **settings})
    assert problems == {"dense_layers": ("at least one sparse layer", "all 6 layers dense")}


def test_model_of_two_layers_is_all_dense_by_default():
    assert "dense_layers" in refusals(EXACT, num_layers=2)


def test_nothing_to_choose_in_the_longest_context():
    assert refusals(EXACT, context_len=80) == {
        "recent": ("sink + recent below the longest context (80 tokens)", "80 tokens")
    }
    assert len(resolve(EXACT, context_len=81)) == 6


def test_budget_above_the_context_is_allowed():
    plan = resolve({**EXACT, "budget": 10**6})[2]
    assert plan.budget.k_max(8192) == 8192


@given(st.integers(3, 40), st.sets(st.integers(0, 39)), st.data())
def test_each_layer_is_what_was_said(num_layers, dense, data):
    dense = {layer for layer in dense if layer < num_layers}
    # Ranges that do not overlap: neighbours of a sorted list of cuts.
    cuts = sorted(data.draw(st.sets(st.integers(0, num_layers), max_size=6)))
    spans = [range(a, b) for a, b in pairwise(cuts)][::2]
    said = {f"{s[0]}-{s[-1]}": {"budget": 300 + i, "dense": False} for i, s in enumerate(spans)}
    overridden = {layer: 300 + i for i, span in enumerate(spans) for layer in span}
    if dense - set(overridden) == set(range(num_layers)):
        return
    config = HataConfig.parse({**EXACT, "dense_layers": sorted(dense), "layers": said})
    for layer, plan in enumerate(config.resolve(num_layers, 8192)):
        assert plan.layer == layer
        assert plan.dense == (layer in dense and layer not in overridden)
        if not plan.dense:
            assert plan.budget.tokens(10**6) == overridden.get(layer, 256)
