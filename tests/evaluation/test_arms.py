from pathlib import Path

import pytest
import yaml

from hata_sglang.config import HataConfig
from hata_sglang.errors import HataError, Refusal
from hata_sglang.evaluation import arms
from hata_sglang.evaluation.arms import arm_arguments, demo_config, measure, reading
from hata_sglang.evaluation.hidden_fact import HiddenFact
from hata_sglang.evaluation.server import ServerProcess


def snapshot(steps: int, context: int, attended: int) -> dict[str, int]:
    return {"decode_steps": steps, "tokens_in_context": context, "tokens_attended": attended}


def test_dense_names_the_stock_backend_and_no_yaml(monkeypatch):
    for gpu, backend in ((True, "flashinfer"), (False, "torch_native")):
        monkeypatch.setattr(arms, "has_cuda_driver", lambda gpu=gpu: gpu)
        with arm_arguments("dense", "model", demo_config()) as arguments:
            assert arguments == ["--model-path", "model", "--attention-backend", backend]


def test_hata_takes_the_file_as_it_is():
    with arm_arguments("hata", "model", demo_config()) as arguments:
        assert arguments == ["--model-path", "model", "--hata-config", str(demo_config())]


@pytest.mark.parametrize("arm", ["exact", "random"])
def test_other_methods_change_nothing_but_the_method(arm):
    with arm_arguments(arm, "model", demo_config()) as arguments:
        ours, theirs = HataConfig.load(arguments[-1]), HataConfig.load(demo_config())
        settings = yaml.safe_load(Path(arguments[-1]).read_text())
    assert ours.method == arm
    assert not set(settings) & ({"weights", "bits"} if arm == "exact" else {"weights"})
    for field in ("budget", "sink", "recent", "dense_layers", "inner_backend"):
        assert getattr(ours, field) == getattr(theirs, field)


def test_unknown_arm_is_refused():
    with (
        pytest.raises(Refusal, match="arm: expected one of dense, exact"),
        arm_arguments("best", "model", demo_config()),
    ):
        pass


def test_reading_tells_layers_steps_and_tokens_apart():
    # Four steps at contexts 101 to 104 in 28 layers, of which each reads 25 tokens.
    before, after = snapshot(2, 1000, 100), snapshot(6, 1000 + 28 * 410, 100 + 28 * 100)
    read = reading(before, after, 100)
    assert (read.steps, read.layers, read.attended, read.context) == (4, 28, 25, 102.5)
    assert read.share == pytest.approx(25 / 102.5)


@pytest.mark.parametrize(
    "after", [snapshot(2, 1000, 100), snapshot(4, 2000, 1100)], ids=["no steps", "all attended"]
)
def test_reading_refuses_a_run_that_was_not_sparse(after):
    with pytest.raises(HataError, match="not sparse"):
        reading(snapshot(2, 1000, 100), after, 100)


def test_measure_refuses_counters_that_stand_still(fake_server):
    fact = HiddenFact("Which?", "48213", "Lisbon", 0.5, 7)
    with ServerProcess(command=fake_server) as server:
        result = measure(server, fact)
        assert result.right
        assert result.read is None
        assert result.step_ms == pytest.approx(1e3 * sum(result.speed.gaps_s) / 2, rel=1)
    counters = '{"decode_steps": 3, "tokens_in_context": 60, "tokens_attended": 6}'
    with (
        ServerProcess(["--counters", counters], command=fake_server) as server,
        pytest.raises(HataError, match="not sparse: 0 sparse steps"),
    ):
        measure(server, fact)
