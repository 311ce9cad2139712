"""Scenarios, the bytes of their stages, and runs of `bench op`, without a GPU."""

import csv
from pathlib import Path

import pytest

from hata_sglang import cli
from hata_sglang.bench import op
from hata_sglang.bench.op_rows import COLUMNS, KEYS, key_of, make_row, stage_bytes
from hata_sglang.bench.scenarios import PRESETS, Scenario, headline, scaling
from hata_sglang.bench.shapes import SHAPES
from hata_sglang.bench.timing import Timing
from hata_sglang.evaluation.results import ResultFile

KILO = 1024
COPY = 2.5e6  # bytes per microsecond: 2,500 GB/s
LLAMA = SHAPES["llama-3.1-8b"]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_scenario_once(preset):
    made = PRESETS[preset]()
    assert len(made) == len(set(made)) == len({str(each) for each in made})
    assert all(80 < each.k <= each.context for each in made)


def test_headline_has_the_sizes_of_the_readme():
    made = set(headline())
    for method in ("asymmetric", "hata"):
        assert Scenario(LLAMA, 8, 128 * KILO, 2048, method) in made
        for users in (32, 128):
            assert Scenario(LLAMA, users, 97 * KILO, 1536, method, shared=96 * KILO) in made
    assert Scenario(LLAMA, 8, 128 * KILO, 2048, bits=64) in made
    assert Scenario(SHAPES["llama-2-7b"], 8, 32 * KILO, 512, bits=32) in made


def test_scaling_has_a_line_against_every_axis():
    made = set(scaling())
    for batch in (1, 8):
        for context in (8, 16, 32, 64, 128, 256, 512):
            assert Scenario(LLAMA, batch, context * KILO, context * 16, bits=64) in made
        for k in (512, 1024, 2048, 4096):
            assert Scenario(LLAMA, batch, 128 * KILO, k) in made
        assert Scenario(LLAMA, batch, 128 * KILO, 2048, bits=256) in made
    for batch in (1, 2, 4, 8, 16, 32, 64):
        assert Scenario(LLAMA, batch, 32 * KILO, 512, "hata") in made
    assert {each.shape for each in made} == {*SHAPES.values()} - {SHAPES["tiny"]}


@pytest.mark.parametrize("file", ["op.csv", "op_h200.csv"])
def test_every_committed_row_can_be_measured_again(repo_root: Path, file):
    with (repo_root / "benchmarks/data" / file).open() as stream:
        reader = csv.DictReader(stream)
        assert tuple(reader.fieldnames[: len(COLUMNS)]) == COLUMNS
        rows = list(reader)
    stages = {row["stage"] for row in rows}
    scenarios = headline() + scaling()
    every = {tuple(map(str, key_of(a, stage).values())) for a in scenarios for stage in stages}
    assert {tuple(row[key] for key in KEYS) for row in rows} <= every


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
    assert stages["attend"] == stages["attend, flashinfer"] == kept + 2 * queries  # q, the output
    assert stages["layer"] == stages["encode"] + stages["rank"] + stages["attend"]
    dense = 2 * 1024 * (8 * 2 * 128 * 2 + 4) + 2 * queries
    assert stages["dense, tensor cores"] == stages["dense, cuda cores"] == dense
    assert stages["exact"] == 2 * 1024 * (8 * 128 * 2 + 4) + stages["attend"]


def test_bytes_of_asymmetric_encoding():
    stages = stage_bytes(Scenario(LLAMA, 1, 1024, 256, "asymmetric", 128))
    weights = 8 * (128 * 128 + 4 * 128 * 128 + 64 * 64) * 2 + 8 * (2 * 128 + 44) * 4
    vectors = (32 + 8) * 128 * 2
    queries = 8 * 4 * 16 + 8 * 44 * 4  # four planes, and the bias by distance
    assert stages["encode"] == weights + vectors + 8 * 16 + queries  # and the codes of keys


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


@pytest.fixture
def scenarios():
    """Some of `scaling`: two points against every axis, and users of one document."""
    sizes = [(1, 32, 512), (8, 32, 512), (1, 128, 2048), (1, 128, 512)]
    made = [Scenario(LLAMA, batch, context * KILO, k, "hata") for batch, context, k in sizes]
    return [*made, Scenario(LLAMA, 4, 33 * KILO, 512, "hata", shared=32 * KILO)]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Function of scenarios that runs them into one file, with layers that take no GPU."""
    path = tmp_path / "out" / "op.csv"
    measured = []

    def timing(scenario, stage):
        at = stage_bytes(scenario)[stage] / COPY
        return Timing(0.9 * at, at, 1.2 * at)

    class Layer:
        def __init__(self, scenario):
            measured.append(scenario)
            self.scenario = scenario

    def dense(layer, cores):
        if not cores:
            return None, "failed: a group of 7 heads"
        return timing(layer.scenario, "dense, tensor cores"), ""

    def stages(layer):
        return {stage: timing(layer.scenario, stage) for stage in ("encode", "rank", "layer")}

    monkeypatch.setattr(op, "SparseLayer", Layer)
    monkeypatch.setattr(op, "copy_bandwidth", lambda: COPY)
    monkeypatch.setattr(op, "time_dense", dense)
    monkeypatch.setattr(op, "time_stages", stages)
    monkeypatch.setattr(op, "time_exact", lambda layer: (None, "skipped: 2.4 GB"))

    def go(scenarios):
        measured.clear()
        failed = op.run_scenarios(scenarios, ResultFile(path, COLUMNS, KEYS))
        said = capsys.readouterr().out.splitlines()
        with path.open() as stream:
            return list(csv.DictReader(stream)), failed, said, list(measured)

    return go


def test_rows_of_a_run(run, scenarios, monkeypatch):
    monkeypatch.setattr("sys.argv", ["bin/hata-sglang", "bench", "op"])
    rows, failed, said, measured = run(scenarios)
    assert (failed, len(said), measured) == (0, len(scenarios), scenarios)
    keys = [tuple(row[key] for key in KEYS) for row in rows]
    assert len(keys) == len(set(keys))
    # Once for every budget, but exact top-k.
    here = [row for row in rows if (row["batch"], row["context"]) == ("1", "131072")]
    count = {stage: [row["stage"] for row in here].count(stage) for stage in ("layer", "exact")}
    assert count == {"layer": 2, "exact": 2}
    tensor, cuda = (row for row in here if row["method"] == "dense")
    assert (cuda["p50_us"], cuda["note"]) == ("", "failed: a group of 7 heads")
    for layer in (row for row in here if row["stage"] == "layer"):
        ratio = float(tensor["p50_us"]) / float(layer["p50_us"])
        assert float(layer["speedup"]) == pytest.approx(ratio, rel=0.01)
        assert float(layer["share_of_copy"]) == pytest.approx(1, abs=0.01)
    for column in ("commit", "date", "device", "torch", "triton", "sglang", "flashinfer"):
        assert here[0][column], column
    assert here[0]["command"] == "hata-sglang bench op"


def test_a_second_run_measures_what_is_missing(run, scenarios):
    first, *_ = run(scenarios[:2])
    rows, _, _, measured = run(scenarios)
    assert rows[: len(first)] == first
    assert measured == scenarios[2:]
    assert run(scenarios)[0] == rows


def test_a_failure_is_said_and_tried_again(run, scenarios, monkeypatch):
    def broken(layer):
        raise RuntimeError("a\nkernel broke")

    with monkeypatch.context() as patch:
        patch.setattr(op, "time_stages", broken)
        rows, failed, said, _ = run(scenarios[:2])
    assert (rows, failed) == ([], 2)
    assert said[1] == "failed: RuntimeError: a kernel broke"
    rows, failed, *_ = run(scenarios[:2])
    assert (len([row for row in rows if row["stage"] == "layer"]), failed) == (2, 0)


def test_without_a_gpu(monkeypatch, tmp_path, capsys):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["bench", "op", "--out", str(tmp_path / "op.csv")]) == 2
    assert "bench op: expected a CUDA GPU" in capsys.readouterr().err
    assert not (tmp_path / "op.csv").exists()


def test_list_needs_no_gpu_and_no_file(capsys):
    assert cli.main(["bench", "op", "--list", "--only", "32 x 32K"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"Llama-3.1-8B 32 x 32K, k 512, {m} 128" for m in ("asymmetric", "hata")]


def test_refusals(capsys):
    assert cli.main(["bench", "op", "--only", "gpt"]) == 2
    assert "--only: expected a part of a line of --list, found 'gpt'" in capsys.readouterr().err
    assert cli.main(["bench", "op"]) == 2
    assert "--out: expected a CSV file, found nothing" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        cli.main(["bench", "op", "--preset", "all", "--out", "x.csv"])
    assert caught.value.code == 2
