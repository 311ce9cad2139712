"""Single settings: types, bounds, names, defaults, and all of them reported at once."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from hata_sglang.config import HataConfig
from hata_sglang.errors import Refusal

EXACT = {"method": "exact", "budget": 256}
RANDOM = {"method": "random", "budget": 256}
HATA = {"method": "hata", "budget": 256, "weights": "some-shipped-name"}


def refusal(mapping, **kwargs) -> Refusal:
    with pytest.raises(Refusal) as caught:
        HataConfig.parse(mapping, **kwargs)
    return caught.value


def problem(mapping, setting):
    """The one problem of `setting`, as (expected, found)."""
    found = [(p.expected, p.found) for p in refusal(mapping).problems if p.setting == setting]
    assert len(found) == 1, refusal(mapping)
    return found[0]


def test_defaults():
    config = HataConfig.parse(EXACT)
    assert (config.sink, config.recent, config.dense_layers) == (16, 64, (0, 1))
    assert (config.inner_backend, config.layers) == ("auto", {})
    assert (config.bits, config.weights, config.seed) == (None, None, None)


def test_everything_given():
    config = HataConfig.parse(
        {
            **HATA,
            "bits": 64,
            "budget": {"ratio": 0.02, "min": 128, "max": 512},
            "sink": 0,
            "recent": 1,
            "dense_layers": [0, "3-4", "6"],
            "inner_backend": "triton",
            "layers": {"7-9": {"budget": 300}, 5: {"dense": True}},
        }
    )
    assert config.dense_layers == (0, 3, 4, 6)
    assert sorted(config.layers) == ["5", "7-9"]
    assert config.layers["7-9"].budget.tokens(1000) == 300


@pytest.mark.parametrize(
    ("value", "layers"), [([], ()), ("0-1", (0, 1)), (3, (3,)), (["2", 0, "0-1"], (0, 1, 2))]
)
def test_dense_layers_forms(value, layers):
    assert HataConfig.parse({**EXACT, "dense_layers": value}).dense_layers == layers


@pytest.mark.parametrize("key", ["method", "budget"])
def test_required(key):
    mapping = {k: v for k, v in EXACT.items() if k != key}
    assert problem(mapping, key)[1] == "nothing"


@pytest.mark.parametrize(
    ("base", "key", "value", "expected", "found"),
    [
        (EXACT, "method", "quest", "asymmetric, exact, hashattention, hata", "'quest'"),
        (EXACT, "method", ["hata"], "asymmetric, exact, hashattention", "['hata']"),
        (EXACT, "method", 3, "asymmetric, exact, hashattention, hata", "3"),
        (RANDOM, "bits", 100, "a multiple of 32 from 32 to 1024", "100"),
        (RANDOM, "bits", 0, "a multiple of 32 from 32 to 1024", "0"),
        (RANDOM, "bits", 288, "a multiple of 32 from 32 to 256 with method random", "288"),
        (RANDOM, "bits", 1056, "a multiple of 32 from 32 to 1024", "1056"),
        (RANDOM, "bits", "128", "a multiple of 32 from 32 to 1024", "'128'"),
        (RANDOM, "bits", 128.0, "a multiple of 32 from 32 to 1024", "128.0"),
        (RANDOM, "seed", -1, "an integer, 0 to 2**32 - 1", "-1"),
        (RANDOM, "seed", True, "an integer, 0 to 2**32 - 1", "True"),
        (HATA, "weights", "", "auto, a path, or the name of shipped weights", "''"),
        (HATA, "weights", 7, "auto, a path, or the name of shipped weights", "7"),
        (EXACT, "budget", 0, "a number of tokens (integer, 1 to 2**31 - 1) or", "0"),
        (EXACT, "budget", -5, "a number of tokens (integer, 1 to 2**31 - 1) or", "-5"),
        (EXACT, "budget", True, "a number of tokens (integer, 1 to 2**31 - 1) or", "True"),
        (
            EXACT,
            "budget",
            256.0,
            "a number of tokens (integer, 1 to 2**31 - 1) or",
            "256.0",
        ),
        (EXACT, "budget", "4K", "a number of tokens (integer, 1 to 2**31 - 1) or", "'4K'"),
        (
            EXACT,
            "budget",
            None,
            "a number of tokens (integer, 1 to 2**31 - 1) or",
            "nothing",
        ),
        (EXACT, "sink", -1, "a number of tokens (integer, 0 to 2**31 - 1)", "-1"),
        (EXACT, "sink", False, "a number of tokens (integer, 0 to 2**31 - 1)", "False"),
        (EXACT, "recent", 1.5, "a number of tokens (integer, 0 to 2**31 - 1)", "1.5"),
        (EXACT, "recent", None, "a number of tokens (integer, 0 to 2**31 - 1)", "nothing"),
        (EXACT, "dense_layers", ["0-x", 5, "9-3"], "a list of layers", "'0-x', '9-3'"),
        (EXACT, "dense_layers", None, "a list of layers", "nothing"),
        (EXACT, "dense_layers", {"0": 1}, "a list of layers", "{'0': 1}"),
        (EXACT, "inner_backend", "fa4", "auto, flashinfer, fa3, triton or torch_native", "'fa4'"),
        (EXACT, "layers", None, "a mapping of layers or ranges", "nothing"),
        (EXACT, "layers", [1], "a mapping of layers or ranges", "[1]"),
    ],
)
def test_bad_value(base, key, value, expected, found):
    actual = problem({**base, key: value}, key)
    assert actual[0].startswith(expected)
    assert actual[1] == found


@pytest.mark.parametrize(
    ("budget", "setting", "expected", "found"),
    [
        ({"min": 100, "max": 200}, "budget.ratio", "a number above 0 and at most 1", "nothing"),
        ({"ratio": 0.1, "max": 200}, "budget.min", "a number of tokens", "nothing"),
        ({"ratio": 0.1, "min": 100}, "budget.max", "a number of tokens", "nothing"),
        ({"ratio": 0.0, "min": 100, "max": 200}, "budget.ratio", "a number above 0", "0.0"),
        ({"ratio": 1.01, "min": 100, "max": 200}, "budget.ratio", "a number above 0", "1.01"),
        ({"ratio": -0.1, "min": 100, "max": 200}, "budget.ratio", "a number above 0", "-0.1"),
        ({"ratio": float("nan"), "min": 100, "max": 200}, "budget.ratio", "a number above", "nan"),
        ({"ratio": 1e-10, "min": 100, "max": 200}, "budget.ratio", "a number above 0", "1e-10"),
        ({"ratio": "1%", "min": 100, "max": 200}, "budget.ratio", "a number above 0", "'1%'"),
        ({"ratio": 0.1, "min": 300, "max": 200}, "budget", "min <= max", "min 300, max 200"),
        ({"ratio": 0.1, "min": 100, "max": 2.5}, "budget.max", "a number of tokens", "2.5"),
        ({"ratio": None, "min": 100, "max": 200}, "budget", "a number of tokens", None),
    ],
)
def test_bad_ratio_budget(budget, setting, expected, found):
    actual = problem({**EXACT, "budget": budget}, setting)
    assert actual[0].startswith(expected)
    assert found is None or actual[1] == found


@pytest.mark.parametrize("ratio", [1, 1.0, 1e-9])
def test_ratio_bounds_are_inclusive(ratio):
    budget = {"ratio": ratio, "min": 100, "max": 200}
    assert HataConfig.parse({**EXACT, "budget": budget}).budget.ratio == ratio


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("metod", "method"),
        ("Budget", "budget"),
        ("dense_layer", "dense_layers"),
        ("innerbackend", "inner_backend"),
        ("weight", "weights"),
        ("layer", "layers"),
    ],
)
def test_unknown_key_names_the_nearest(key, nearest):
    expected, found = problem({**EXACT, key: 1}, key)
    assert expected == f"a known key (did you mean {nearest!r}?)"
    assert found == repr(key)


def test_unknown_key_like_no_other_lists_all():
    expected, _ = problem({**EXACT, "zzz": 1}, "zzz")
    assert (
        "valid: method, bits, weights, seed, budget, sink, recent, left_out, dense_layers"
        in expected
    )


@pytest.mark.parametrize("key", [5, True, None])
def test_key_that_is_no_word(key):
    assert problem({**EXACT, key: 1}, str(key))[0].startswith("a known key")


def test_unknown_word_names_the_nearest():
    assert "did you mean 'hata'?" in problem({**EXACT, "method": "hatta"}, "method")[0]
    layers = {"5": {"method": "rnadom"}}
    expected, _ = problem({**EXACT, "layers": layers}, "layers.5.method")
    assert "did you mean 'random'?" in expected


@pytest.mark.parametrize(
    ("layers", "setting", "expected"),
    [
        ({"5": {"budgt": 300}}, "layers.5.budgt", "a known key (did you mean 'budget'?)"),
        ({"5": {"budget": {"ration": 1}}}, "layers.5.budget.ration", "(did you mean 'ratio'?)"),
        ({"5": {"sink": -1}}, "layers.5.sink", "a number of tokens (integer, 0 to 2**31 - 1)"),
        ({"5": {"dense": "yes"}}, "layers.5.dense", "true or false"),
        ({"5": {"inner_backend": "fa3"}}, "layers.5.inner_backend", "a per-layer key"),
        ({"5": {"seed": 1}}, "layers.5.seed", "a per-layer key"),
        ({"5": {"layers": {}}}, "layers.5.layers", "a per-layer key"),
        ({"9-5": {"sink": 1}}, "layers.9-5", "a layer number or a range"),
        ({"all": {"sink": 1}}, "layers.all", "a layer number or a range"),
        ({True: {"sink": 1}}, "layers.True", "a layer number or a range"),
    ],
)
def test_bad_override(layers, setting, expected):
    assert expected in problem({**EXACT, "layers": layers}, setting)[0]


@pytest.mark.parametrize("value", [None, 5, [], "dense"])
def test_override_that_is_no_mapping(value):
    settings = [p.setting for p in refusal({**EXACT, "layers": {"5": value}}).problems]
    assert settings == ["layers.5"]


def test_all_problems_in_one_refusal():
    mapping = {
        "metod": "hata",
        "bits": 100,
        "budget": {"ratio": 2.0, "min": 100, "max": 200},
        "sink": -1,
        "layers": {"9-5": {"sink": 1}, "5": {"budgt": 1}, "7-9": {"budget": 30}, "9": {"sink": 2}},
    }
    error = refusal(mapping, origin="some.yaml")
    settings = [p.setting for p in error.problems]
    for key in ("method", "bits", "budget.ratio", "sink", "metod", "layers.9-5", "layers.5.budgt"):
        assert f"{key} (some.yaml)" in settings
    # Rules between settings are reported along with malformed values.
    assert "layers.9 (some.yaml)" in settings
    assert f"hata cannot run: {len(settings)} problems" in str(error)


def test_long_values_are_cut():
    found = problem({**EXACT, "budget": "x" * 500}, "budget")[1]
    assert len(found) <= 80
    assert "xxx...xxx" in found


def test_direct_construction_is_checked_as_well():
    with pytest.raises(Refusal, match="weights: expected no weights with method exact"):
        HataConfig(method="exact", budget=256, weights="x")
    with pytest.raises(Refusal, match="did you mean 'budget'"):
        HataConfig.model_validate({"method": "exact", "budgets": 256})


def test_is_frozen():
    config = HataConfig.parse(EXACT)
    with pytest.raises(ValidationError):
        config.sink = 3


def test_dump_is_the_same_configuration():
    mapping = {
        **RANDOM,
        "budget": {"ratio": 0.02, "min": 128, "max": 512},
        "layers": {"7-9": {"budget": 300}, 5: {"dense": True}},
    }
    config = HataConfig.parse(mapping)
    dumped = config.model_dump(exclude_none=True)
    assert dumped["budget"] == {"ratio": 0.02, "min": 128, "max": 512}
    assert dumped["layers"] == {"7-9": {"budget": 300}, "5": {"dense": True}}
    assert HataConfig.parse(dumped) == config


def test_a_loaded_file_crosses_to_another_process_as_json(tmp_path, monkeypatch):
    (tmp_path / "files").mkdir()
    path = tmp_path / "files" / "conf.yaml"
    path.write_text(
        "method: asymmetric\nweights: ./mine\nbits: 64\nsink: 0\nseed: 4294967295\n"
        "budget: {ratio: 1e-3, min: 128, max: 2147483647}\ndense_layers: [0, 3-4]\n"
        "layers:\n  7-9: {weights: ~/other, budget: 300}\n  5: {dense: true}\n"
        "  6: {method: random, weights: null}\n"
    )
    config = HataConfig.load(path)
    mapping = json.loads(json.dumps(config.to_mapping()))
    monkeypatch.chdir("/")
    copy = HataConfig.parse(mapping, origin="the launcher")
    assert copy == config
    assert copy.resolve(10, 8192) == config.resolve(10, 8192)
    assert mapping["weights"] == str(tmp_path / "files" / "mine")
    assert mapping["layers"]["7-9"]["weights"] == str(Path.home() / "other")
    assert mapping["layers"]["6"] == {"method": "random"}


def test_a_shipped_name_crosses_as_it_is():
    mapping = HataConfig.parse(HATA).to_mapping()
    assert mapping["weights"] == HATA["weights"]
    assert HataConfig.parse(mapping) == HataConfig.parse(HATA)


def test_weights_paths_hold_from_the_base_folder(tmp_path):
    (tmp_path / "beside").mkdir()

    def located(weights):
        return HataConfig.parse({**HATA, "weights": weights}, base_dir=tmp_path).weights

    assert located("./mine") == str(tmp_path / "mine")
    assert located("../mine") == str(tmp_path.parent / "mine")
    assert located("sub/mine") == str(tmp_path / "sub" / "mine")
    assert located("/abs/mine") == "/abs/mine"
    assert located("beside") == str(tmp_path / "beside")
    assert located("smollm2-hata-128b") == "smollm2-hata-128b"
    assert located(tmp_path / "beside") == str(tmp_path / "beside")


def test_weights_of_an_override_are_located_too(tmp_path):
    mapping = {**HATA, "layers": {"5": {"weights": "./other"}}}
    config = HataConfig.parse(mapping, base_dir=tmp_path)
    assert config.layers["5"].weights == str(tmp_path / "other")
    assert mapping["layers"]["5"]["weights"] == "./other"  # the caller's mapping stays as it was


TRAFFIC = {"folder": "/kept"}


def test_traffic_is_off_by_default_and_bounded():
    assert HataConfig.parse(HATA).traffic is None
    kept = HataConfig.parse({**HATA, "traffic": TRAFFIC}).traffic
    assert (kept.share, kept.requests, kept.min, kept.max) == (0.01, 32, 2048, 16_384)
    assert "of 1 % of prompts of 2048 to 16384 tokens, the last 32, are kept in /kept" in str(kept)


def test_the_folder_of_traffic_holds_from_that_of_the_yaml(tmp_path):
    config = HataConfig.parse({**HATA, "traffic": {"folder": "kept"}}, base_dir=tmp_path)
    assert config.traffic.folder == str(tmp_path / "kept")
    assert HataConfig.parse(json.loads(json.dumps(config.to_mapping()))) == config


@pytest.mark.parametrize(
    ("traffic", "setting", "expected"),
    [
        ({}, "traffic.folder", "the path of a folder"),
        (True, "traffic", "a mapping such as {folder: DIR"),
        ({"folder": 3}, "traffic.folder", "the path of a folder"),
        ({**TRAFFIC, "share": 0}, "traffic.share", "a number above 0 and at most 1"),
        ({**TRAFFIC, "share": 1.5}, "traffic.share", "a number above 0 and at most 1"),
        ({**TRAFFIC, "requests": 0}, "traffic.requests", "a number of requests"),
        ({**TRAFFIC, "max": 2**31}, "traffic.max", "a number of tokens"),
        ({**TRAFFIC, "min": 300, "max": 200}, "traffic", "min <= max"),
        ({**TRAFFIC, "tokens": 5}, "traffic.tokens", "a known key"),
    ],
)
def test_bad_traffic(traffic, setting, expected):
    assert problem({**HATA, "traffic": traffic}, setting)[0].startswith(expected)
