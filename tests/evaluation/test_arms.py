from argparse import ArgumentTypeError
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from hata_sglang.config import HataConfig
from hata_sglang.errors import Refusal
from hata_sglang.evaluation import arms, serving
from hata_sglang.evaluation.arms import ARMS, arm_settings, arm_weights, demo_config
from hata_sglang.methods import methods


@pytest.fixture
def flags(tmp_path):
    """Function of an arm and its settings that gives the flags of its server."""
    return lambda arm, config, *more, **budget: serving.arm_flags(
        arm, config, tmp_path, *more, **budget
    )[2]


@pytest.mark.parametrize("gpu", [True, False])
def test_dense_is_served_by_sglang_alone(gpu, tmp_path, monkeypatch):
    """On a GPU by its own launcher: this package's would take hata where nothing is named."""
    started = []

    class NoServer:
        client = None

        def __init__(self, arguments, module, on_wait):
            started.append((module, arguments))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(serving, "ServerProcess", NoServer)
    monkeypatch.setattr(arms, "has_cuda_driver", lambda: gpu)
    quiet = serving.Console(quiet=True)
    with serving.started("dense", Path("m"), None, ["--dtype", "float32"], quiet) as (_, arm):
        assert not arm.sparse
    named = [] if gpu else ["--attention-backend", "torch_native"]
    module = "sglang.launch_server" if gpu else "hata_sglang.launch_server"
    assert started == [(module, ["--model-path", "m", *named, "--dtype", "float32"])]


@pytest.mark.parametrize("weighed", [True, False])
@pytest.mark.parametrize("asked", ["auto", "mean", "none"])
def test_an_arm_is_named_after_the_mean_that_its_server_mixes_in(weighed, asked, monkeypatch):
    card = SimpleNamespace(bits=128, left_out=weighed)
    monkeypatch.setattr(serving, "read_card", lambda ref: card)
    settings = {"method": "asymmetric", "weights": "w", "budget": 256, "left_out": asked}
    arm = serving.describe("asymmetric", HataConfig.parse(settings))
    name = "asymmetric + mean" if weighed and asked != "none" else "asymmetric"
    assert arm == (name, "asymmetric", "128", "256")


def test_the_files_own_method_is_served_as_the_file_says(flags):
    ours, _ = loaded(flags("asymmetric", demo_config()))
    assert ours == HataConfig.load(demo_config())


def loaded(arguments: list[str]) -> tuple[HataConfig, dict]:
    """What the server of an arm reads, and the YAML itself."""
    return HataConfig.load(arguments[-1]), yaml.safe_load(Path(arguments[-1]).read_text())


def test_there_is_an_arm_for_dense_and_every_method():
    assert ("dense", *methods()) == ARMS


@pytest.mark.parametrize("arm", ["exact", "random", "streaming"])
def test_other_methods_change_nothing_but_the_method(arm, flags):
    ours, settings = loaded(flags(arm, demo_config()))
    theirs = HataConfig.load(demo_config())
    assert ours.method == arm
    assert ours.bits == (128 if arm == "random" else None)
    assert not set(settings) & {"weights", "seed"}
    for field in ("budget", "sink", "recent", "dense_layers", "inner_backend"):
        assert getattr(ours, field) == getattr(theirs, field)


@pytest.mark.parametrize("arm", ["hashattention", "asymmetric", "hata"])
def test_trained_arms_have_the_weights_given_and_their_bits(arm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    ours = HataConfig.parse(arm_settings(arm, demo_config(), {arm: "mine"}))
    assert (ours.method, ours.bits, ours.weights) == (arm, None, str(tmp_path / "mine"))
    assert arm_settings(arm, demo_config(), {arm: "shipped-name"})["weights"] == "shipped-name"


def test_trained_arm_without_weights_is_refused():
    with pytest.raises(Refusal, match="expected a folder or shipped name of weights for arm hata"):
        arm_settings("hata", demo_config(), {"asymmetric": "x"})


def test_other_weights_of_the_same_method_have_other_bits():
    settings = arm_settings("asymmetric", demo_config(), {"asymmetric": "other"})
    assert (settings["weights"], settings.get("bits")) == ("other", None)


PER_LAYER = """
method: hata
bits: 64
weights: ./mine
budget: {ratio: 0.1, min: 128, max: 512}
sink: 4
layers:
  2-3: {budget: 300, bits: 32, left_out: mean}
  4: {method: random, recent: 8}
  5: {weights: ./other}
  6: {dense: true}
"""


@pytest.fixture
def per_layer(tmp_path):
    path = tmp_path / "base.yaml"
    path.write_text(PER_LAYER)
    return path


def test_another_method_holds_in_every_layer(per_layer):
    settings = arm_settings("streaming", per_layer)
    assert settings["layers"] == {"2-3": {"budget": 300}, "4": {"recent": 8}, "6": {"dense": True}}
    assert HataConfig.parse(settings).resolve(8, 4096)[4].method == "streaming"


def test_a_budget_holds_in_every_layer_and_keeps_the_rest(per_layer, tmp_path):
    settings = arm_settings("hata", per_layer, budget=200)
    ours = HataConfig.parse(settings)
    assert settings["layers"] == {
        "2-3": {"bits": 32, "left_out": "mean"},
        "4": {"method": "random", "recent": 8},
        "5": {"weights": str(tmp_path / "other")},  # a path that holds from the base's folder
        "6": {"dense": True},
    }
    plans = ours.resolve(8, 4096)
    assert {str(plan.budget) for plan in plans if not plan.dense} == {"200"}
    assert (plans[7].weights, plans[7].bits, plans[7].sink) == (str(tmp_path / "mine"), 64, 4)


def test_a_budget_may_be_a_share(flags):
    budget = loaded(flags("exact", demo_config(), budget=0.0156))[0].budget
    assert (budget.ratio, budget.min) == (0.0156, 81)  # sink 16, recent 64, and one to choose
    assert budget.tokens(100_000) == 1560


def test_a_ratio_budget_and_the_seed_of_random_are_kept(tmp_path):
    path = tmp_path / "base.yaml"
    path.write_text("method: random\nseed: 3\nbudget: {ratio: 0.1, min: 128, max: 512}\n")
    assert arm_settings("random", path)["seed"] == 3
    settings = arm_settings("exact", path)
    assert settings == {"method": "exact", "budget": {"ratio": 0.1, "min": 128, "max": 512}}


def test_random_takes_no_bits_that_it_cannot_have(tmp_path):
    path = tmp_path / "base.yaml"
    path.write_text("method: hashattention\nbits: 512\nweights: x\nbudget: 256\n")
    assert "bits" not in arm_settings("random", path)


def test_a_budget_below_what_is_always_kept_is_refused(flags):
    with pytest.raises(Refusal, match="at least 81 tokens"):
        flags("exact", demo_config(), budget=80)


def test_weights_of_arms_on_a_command_line():
    assert arm_weights("asymmetric=some/folder=x") == ("asymmetric", "some/folder=x")
    for text in ("exact=x", "asymmetric", "asymmetric=", "=x"):
        with pytest.raises(ArgumentTypeError, match="expected ARM=WEIGHTS with an arm of asym"):
            arm_weights(text)


def test_unknown_arms_are_refused(flags):
    with pytest.raises(Refusal, match="arm: expected dense, asymmetric,"):
        flags("best", demo_config())
