"""Scenarios: presets, lists, order, and the bytes of each stage."""

from itertools import pairwise

import pytest

from hata_sglang import cli
from hata_sglang.bench.layer import layer_count, memory_needed
from hata_sglang.bench.op_rows import COLUMNS, make_row, stage_bytes
from hata_sglang.bench.presets import PRESETS, make_scenarios
from hata_sglang.bench.shapes import SHAPES, Scenario
from hata_sglang.bench.timing import Timing
from hata_sglang.errors import Refusal

LLAMA = SHAPES["Llama-3.1-8B"]


def test_headline_without_lists():
    scenarios = make_scenarios(None)
    assert {scenario.method for scenario in scenarios} == {"hata", "asymmetric"}
    assert {scenario.shape.name for scenario in scenarios} == {"Llama-3.1-8B", "Llama-2-7B"}


def test_grid_has_every_combination_once():
    axes = PRESETS["grid"]
    scenarios = make_scenarios("grid")
    counts = (axes.shapes, axes.batches, axes.contexts, axes.budgets, axes.bits, axes.methods)
    product = 1
    for values in counts:
        product *= len(values)
    # 1/64 of 32K, 64K, 128K and 256K is one of the other budgets.
    twice = product // len(axes.contexts) // len(axes.budgets) * 4
    assert len(scenarios) == len(set(scenarios)) == product - twice


def test_lists_replace_those_of_quick():
    scenarios = make_scenarios(None, contexts=[8192], budgets=[0.0625, 1024])
    assert {scenario.context for scenario in scenarios} == {8192}
    assert {scenario.k for scenario in scenarios} == {512, 1024}
    assert {scenario.batch for scenario in scenarios} == set(PRESETS["quick"].batches)


@pytest.mark.parametrize("preset", ["grid", "quick", "headline", "scaling"])
def test_scenarios_of_the_same_buffers_are_beside_each_other(preset):
    seen = [scenario.buffers for scenario in make_scenarios(preset)]
    changes = sum(a != b for a, b in pairwise(seen))
    assert changes == len(set(seen)) - 1


def test_a_budget_longer_than_a_context_is_left_out():
    scenarios = make_scenarios("quick", contexts=[8192, 65536], budgets=[32768])
    assert {scenario.context for scenario in scenarios} == {65536}


@pytest.mark.parametrize(
    ("lists", "words"),
    [
        ({"bits": [100]}, "--bits: expected multiples of 32, found 100"),
        ({"budgets": [0.001], "contexts": [8192]}, "more than 80 tokens"),
        ({"budgets": [65536], "contexts": [8192]}, "not longer than every context, found 65536"),
    ],
)
def test_refused_lists(lists, words):
    with pytest.raises(Refusal, match=words):
        make_scenarios("quick", **lists)


@pytest.mark.parametrize("preset", ["headline", "scaling"])
def test_presets_that_take_no_lists(preset):
    with pytest.raises(Refusal, match=f"found {preset}, --bits"):
        make_scenarios(preset, bits=[64])


def test_scaling_has_a_line_against_every_axis():
    scenarios = set(make_scenarios("scaling"))
    kilo = 1024
    for batch in (1, 8):
        for context in (8, 16, 32, 64, 128, 256, 512):
            assert Scenario(LLAMA, batch, context * kilo, context * 16, bits=64) in scenarios
        for k in (512, 1024, 2048, 4096):
            assert Scenario(LLAMA, batch, 128 * kilo, k) in scenarios
    for batch in (1, 2, 4, 8, 16, 32, 64):
        assert Scenario(LLAMA, batch, 32 * kilo, 512, "hata") in scenarios
    assert {scenario.shape.name for scenario in scenarios} == set(SHAPES)


def test_bytes_of_hata():
    """Batch 2, 1,024 tokens, 8 KV heads of 128: counted by hand."""
    stages = stage_bytes(Scenario(LLAMA, 2, 1024, 256, "hata", 128))
    weights, queries, keys = 8 * 128 * 128 * 2, 2 * 32 * 128 * 2, 2 * 8 * 128 * 2
    query_codes, key_codes = 2 * 32 * 16, 2 * 8 * 16
    assert stages["encode"] == weights + queries + keys + query_codes + key_codes
    codes_and_slots, picked = 2 * 1024 * (8 * 16 + 4), 2 * 8 * 256 * 4
    assert stages["rank"] == query_codes + codes_and_slots + picked
    assert stages["rank/filter_kernel"] == query_codes + codes_and_slots
    kept = 2 * 8 * 256 * (2 * 128 * 2 + 4)
    assert stages["attend"] == kept + 2 * queries  # q and the output
    assert stages["layer"] == stages["encode"] + stages["rank"] + stages["attend"]
    dense = 2 * 1024 * (8 * 2 * 128 * 2 + 4) + 2 * queries
    assert stages["dense, tensor cores"] == stages["dense, cuda cores"] == dense


def test_bytes_of_asymmetric_encoding():
    stages = stage_bytes(Scenario(LLAMA, 1, 1024, 256, "asymmetric", 128))
    weights = 8 * (128 * 128 + 4 * 128 * 128 + 64 * 64) * 2 + 8 * 2 * 128 * 4
    vectors = (32 + 8) * 128 * 2
    assert stages["encode"] == weights + vectors + 8 * 16 + 8 * 4 * 16  # key codes, four planes


def test_bytes_of_a_shared_document():
    """Its tokens are read once for all users."""
    users = stage_bytes(Scenario(LLAMA, 8, 1124, 256, "hata", 128, shared=1024))
    own = stage_bytes(Scenario(LLAMA, 8, 100, 256, "hata", 128))
    assert users["rank/filter_kernel"] == own["rank/filter_kernel"]
    # 128 numbers and a base of every query.
    assert users["rank/shared_kernel"] == 1024 * (8 * 16 + 4) + 8 * 8 * (128 + 4)
    few = stage_bytes(Scenario(LLAMA, 3, 1124, 256, "hata", 128, shared=1024))
    own_of_few = stage_bytes(Scenario(LLAMA, 3, 100, 256, "hata", 128))
    both = few["rank/filter_kernel"] - own_of_few["rank/filter_kernel"]
    assert both == 1024 * (8 * 16 + 4)  # by the filter: fewer than four are no group
    assert "rank/shared_kernel" not in few
    assert users["dense, tensor cores"] == own["dense, tensor cores"] + 1024 * (8 * 512 + 4)
    assert users["dense layer"] == users["dense, tensor cores"]


def test_a_shared_prefix_is_shorter_than_the_context():
    found = make_scenarios("quick", contexts=[8192, 65536], shared=[0, 32768], batches=[4])
    assert {(each.context, each.shared) for each in found} == {
        (8192, 0), (65536, 0), (65536, 32768)
    }  # fmt: skip


def test_rows():
    scenario = Scenario(LLAMA, 1, 8192, 512, "hata", 64)
    row = make_row(scenario, "layer", Timing(9.0, 10.0, 12.0), 2e6, dense_us=25.0)
    assert set(row) == set(COLUMNS)
    size = stage_bytes(scenario)["layer"]
    assert row["gb_per_s"] == round(size / 1e4, 1)
    assert row["share_of_copy"] == round(size / 2e7, 4)
    assert (row["p20_us"], row["p50_us"], row["p80_us"], row["speedup"]) == (9.0, 10.0, 12.0, 2.5)
    dense = make_row(scenario, "dense, cuda cores", None, 2e6, note="failed")
    assert (dense["method"], dense["k"], dense["bits"], dense["p50_us"]) == ("dense", "", "", "")


def test_memory_grows_with_what_is_kept():
    small = Scenario(LLAMA, 1, 8192, 512)
    large = Scenario(LLAMA, 64, 512 * 1024, 512)
    assert layer_count(small, 16) == 32
    assert layer_count(large, 16) == 2
    assert memory_needed(small) < 4e9
    assert memory_needed(large) > 2 * large.dense_bytes


def test_without_a_gpu(monkeypatch, tmp_path, capsys):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["bench", "op", "--out", str(tmp_path / "op.csv")]) == 2
    error = capsys.readouterr().err
    assert "bench op: expected a CUDA GPU" in error
    assert not (tmp_path / "op.csv").exists()


def test_list_needs_no_gpu_and_no_file(capsys):
    argv = ["bench", "op", "--list", "--shapes", "qwen2.5-7b"]
    assert cli.main([*argv, "--contexts", "128K", "--batches", "4", "--budgets", "2K"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"Qwen2.5-7B 4 x 128K, k 2048, {m} 128" for m in ("asymmetric", "hata")]


def test_measuring_needs_a_file(capsys):
    for action in ("op", "serve"):
        assert cli.main(["bench", action]) == 2
        assert "--out: expected a CSV file, found nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--shapes", "gpt"], "expected one of Llama-3.1-8B"),
        (["--contexts", "0"], "expected tokens (32768 or 32K), found '0'"),
        (["--budgets", "1.5"], "expected tokens (512) or a share (0.0156), found '1.5'"),
        (["--batches", "-1"], "--batches"),
        (["--methods", "exact"], "invalid choice: 'exact'"),
        (["--preset", "all"], "invalid choice: 'all'"),
    ],
)
def test_usage_errors(argv, words, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["bench", "op", "--out", "x.csv", *argv])
    assert caught.value.code == 2
    assert words in capsys.readouterr().err
