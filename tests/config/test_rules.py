"""Settings that are fine alone and wrong together."""

import pytest

from hata_sglang.config import HataConfig
from hata_sglang.errors import Refusal
from hata_sglang.methods import method_names

EXACT = {"method": "exact", "budget": 256}
RANDOM = {"method": "random", "budget": 256}
STREAMING = {"method": "streaming", "budget": 256}
HATA = {"method": "hata", "budget": 256, "weights": "shipped"}


def settings(mapping) -> dict[str, tuple[str, str]]:
    """Every problem of `mapping`, by setting."""
    try:
        HataConfig.parse(mapping)
    except Refusal as refusal:
        return {p.setting: (p.expected, p.found) for p in refusal.problems}
    return {}


def only(mapping, setting) -> tuple[str, str]:
    problems = settings(mapping)
    assert list(problems) == [setting]
    return problems[setting]


def plans(mapping):
    return HataConfig.parse(mapping).resolve(8, 4096)


@pytest.mark.parametrize("method", method_names(trained=True))
@pytest.mark.parametrize("weights", [{}, {"weights": None}, {"weights": "auto"}])
def test_weights_of_trained_methods_are_found_by_themselves(method, weights):
    found = plans({"method": method, "budget": 256, **weights})
    assert {plan.weights for plan in found if not plan.dense} == {"auto"}
    assert {plan.bits for plan in found if not plan.dense} == {None}


@pytest.mark.parametrize("base", [EXACT, RANDOM, STREAMING])
def test_other_methods_take_no_weights(base):
    expected, found = only({**base, "weights": "shipped"}, "weights")
    assert expected == f"no weights with method {base['method']}"
    assert found == "'shipped'"


@pytest.mark.parametrize(
    ("changed", "obstacle"),
    [
        ({"method": "exact", "weights": None}, "method exact, which no set weighs it for"),
        ({"method": "streaming", "weights": None}, "method streaming, which"),
        ({"method": "random", "weights": None}, "method random, which"),
        ({"recent": 0}, "recent 0, as steps sum the values of tokens that are always kept"),
        ({"attend": "flashinfer"}, "attend flashinfer, which has no place for it"),
    ],
)
def test_where_no_mean_can_be_mixed_in(changed, obstacle):
    settings_ = {key: value for key, value in (HATA | changed).items() if value is not None}
    expected, found = only({**settings_, "left_out": "mean"}, "left_out")
    assert expected.startswith(f"auto or none with {obstacle}")
    assert found == "mean"
    assert {plan.left_out for plan in plans(settings_)} == {"none"}  # auto
    assert {plan.left_out for plan in plans({**settings_, "left_out": "none"})} == {"none"}


def test_the_mean_of_a_layer_follows_its_own_settings():
    base = {**HATA, "left_out": "mean"}
    layers = {"3": {"left_out": "none"}, "4": {"left_out": "none", "recent": 0}, "5": {"sink": 1}}
    found = [plan.left_out for plan in plans({**base, "layers": layers})]
    assert found == ["none", "none", "mean", "none", "none", "mean", "mean", "mean"]
    assert list(settings({**base, "layers": {"5": {"recent": 0}}})) == ["layers.5.left_out"]
    assert list(settings({**base, "layers": {"5": {"method": "exact"}}})) == ["layers.5.left_out"]
    assert plans(HATA)[5].left_out == "auto"


def test_exact_takes_no_bits():
    assert "keeps no codes" in only({**EXACT, "bits": 128}, "bits")[0]


def test_streaming_takes_no_bits():
    expected, found = only({**STREAMING, "bits": 128}, "bits")
    assert expected == "no bits with method streaming, which keeps no codes"
    assert found == "128"


@pytest.mark.parametrize("method", ["hata", "asymmetric"])
def test_codes_above_256_bits_are_for_hashattention(method):
    expected, found = only({**HATA, "method": method, "bits": 288}, "bits")
    assert expected == f"a multiple of 32 from 32 to 256 with method {method}"
    assert found == "288"
    assert settings({**HATA, "method": "hashattention", "bits": 1024}) == {}


def test_an_override_inherits_bits_that_its_method_cannot_have():
    base = {**HATA, "method": "hashattention", "bits": 288}
    assert list(settings({**base, "layers": {"5": {"method": "random"}}})) == ["layers.5.bits"]
    assert settings({**base, "layers": {"5": {"method": "exact"}, "6": {"sink": 1}}}) == {}


@pytest.mark.parametrize("base", [EXACT, HATA, STREAMING])
def test_seed_only_for_random(base):
    assert "no seed unless" in only({**base, "seed": 3}, "seed")[0]


def test_seed_with_random_in_one_layer():
    assert settings({**EXACT, "seed": 3, "layers": {"5": {"method": "random"}}}) == {}


@pytest.mark.parametrize(
    ("change", "setting", "least"),
    [
        ({"budget": 80}, "budget", 81),
        ({"budget": 256, "sink": 200, "recent": 56}, "budget", 257),
        ({"budget": {"ratio": 0.5, "min": 80, "max": 90}}, "budget.min", 81),
        ({"layers": {"5": {"budget": 80}}}, "layers.5.budget", 81),
        ({"layers": {"5": {"sink": 192}}}, "layers.5.budget", 257),
        ({"layers": {"5": {"recent": 240}}}, "layers.5.budget", 257),
        ({"layers": {"5": {"sink": None, "budget": 80}}}, "layers.5.budget", 81),
    ],
)
def test_budget_must_exceed_sink_and_recent(change, setting, least):
    expected, _ = only({**EXACT, **change}, setting)
    assert expected.startswith(f"at least {least} tokens (sink ")


def test_budget_of_one_choice_is_enough():
    assert settings({**EXACT, "budget": 81}) == {}
    assert settings({**EXACT, "budget": 1, "sink": 0, "recent": 0}) == {}


@pytest.mark.parametrize(
    ("change", "setting", "least"),
    [
        ({"budget": 79}, "budget", 80),
        ({"budget": {"ratio": 0.5, "min": 79, "max": 90}}, "budget.min", 80),
        ({"layers": {"5": {"budget": 79}}}, "layers.5.budget", 80),
    ],
)
def test_streaming_has_nothing_to_choose(change, setting, least):
    expected, _ = only({**STREAMING, **change}, setting)
    assert expected == f"at least {least} tokens (sink 16 + recent 64)"
    assert settings({**STREAMING, "budget": 80}) == {}
    assert settings({**STREAMING, "budget": 1, "sink": 0, "recent": 0}) == {}


def test_an_override_that_has_to_choose_needs_a_token_more():
    override = {"layers": {"5": {"method": "exact"}}}
    assert list(settings({**STREAMING, "budget": 80, **override})) == ["layers.5.budget"]
    assert settings({**STREAMING, "budget": 81, **override}) == {}


def test_an_override_with_another_trained_method_has_its_own_weights():
    layers = {"5": {"method": "asymmetric"}, "6": {"method": "hata"}, "7": {"weights": "auto"}}
    found = plans({**HATA, "layers": layers})
    assert {plan.layer: plan.weights for plan in found[4:]} == {
        4: HATA["weights"], 5: "auto", 6: HATA["weights"], 7: "auto",
    }  # fmt: skip


def test_override_with_wrong_method_settings():
    layers = {"5": {"method": "hata"}, "6": {"weights": "x"}, "7": {"bits": 64}}
    problems = settings({**EXACT, "layers": layers})
    assert list(problems) == ["layers.6.weights", "layers.7.bits"]


def test_override_may_change_the_method():
    layers = {"5": {"method": "hata", "weights": "x", "bits": 64}, "6": {"method": "random"}}
    assert settings({**EXACT, "layers": layers}) == {}
    assert settings({**HATA, "layers": {"5": {"method": "exact"}, "6": {"weights": "y"}}}) == {}


def test_overlapping_ranges_name_both():
    layers = {"2-15": {"budget": 300}, "10-20": {"budget": 400}, "15": {"sink": 1}}
    error = settings({**EXACT, "layers": layers})
    assert list(error) == ["layers.10-20", "layers.15"]
    assert error["layers.10-20"] == (
        "each layer in one range",
        "'2-15' and '10-20' both holding layers 10-15",
    )


def test_same_layer_as_number_and_text():
    error = settings({**EXACT, "layers": {5: {"sink": 1}, "5": {"sink": 2}}})
    assert error["layers.5"][1] == "'5' and '5' both holding layers 5"


def test_empty_override():
    assert only({**EXACT, "layers": {"5": {}}}, "layers.5") == ("at least one setting", "none")


def test_a_null_setting_is_left_out():
    null = {"dense": None, "sink": None}
    assert only({**EXACT, "layers": {"5": null}}, "layers.5") == ("at least one setting", "none")
    # It says nothing about the layer: the other setting is still one of a dense layer.
    assert list(settings({**EXACT, "layers": {"0": {**null, "recent": 1}}})) == ["layers.0"]
    assert settings({**EXACT, "layers": {"5": {**null, "dense": True}}}) == {}


def test_ranges_are_compared_with_the_longest():
    layers = {"0-9": {"sink": 1}, "1-2": {"sink": 2}, "4": {"sink": 3}, "9-10": {"sink": 4}}
    layers["8"] = {"sink": 5}
    error = settings({**EXACT, "dense_layers": [], "layers": layers})
    assert {key: found for key, (_, found) in error.items()} == {
        "layers.1-2": "'0-9' and '1-2' both holding layers 1-2",
        "layers.4": "'0-9' and '4' both holding layers 4",
        "layers.8": "'0-9' and '8' both holding layers 8",
        "layers.9-10": "'0-9' and '9-10' both holding layers 9",
    }


def test_dense_goes_alone():
    expected, found = only({**EXACT, "layers": {"5": {"dense": True, "sink": 1}}}, "layers.5")
    assert expected.startswith("dense: true alone")
    assert found == "also sink"


def test_override_of_a_dense_layer():
    layers = {"0-5": {"budget": 300}}
    expected, found = only({**EXACT, "layers": layers}, "layers.0-5")
    assert "`dense: false`" in expected
    assert found == "layers 0-1 in dense_layers (its default)"
    assert only({**EXACT, "dense_layers": [3], "layers": layers}, "layers.0-5")[1] == (
        "layers 3 in dense_layers"
    )


def test_override_may_end_a_dense_layer():
    assert settings({**EXACT, "layers": {"0-5": {"budget": 300, "dense": False}}}) == {}


def test_dense_said_twice_is_no_contradiction():
    assert settings({**EXACT, "layers": {"0-5": {"dense": True}}}) == {}


@pytest.mark.parametrize("base", [EXACT, RANDOM, STREAMING])
def test_traffic_is_for_codes_that_can_be_trained(base):
    traffic = {"traffic": {"folder": "/kept"}}
    expected, _ = only({**base, **traffic}, "traffic")
    assert expected.startswith("none unless a layer's method is asymmetric, ")
    assert settings({**base, **traffic, "layers": {"5": {"method": "hata"}}}) == {}
