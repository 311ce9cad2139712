"""Runs over scenarios: what is appended, skipped, tried again; with a meter that needs no GPU."""

import csv

import pytest

from hata_sglang.bench.op_rows import COLUMNS, KEYS
from hata_sglang.bench.op_run import OpRun
from hata_sglang.bench.presets import make_scenarios
from hata_sglang.evaluation.results import ResultFile


@pytest.fixture
def run(tmp_path):
    """Function of (scenarios, meter) that runs into one file and gives its rows."""
    path = tmp_path / "out" / "op.csv"

    def go(scenarios, meter):
        said = []
        run = OpRun(ResultFile(path, COLUMNS, KEYS), meter, said.append)
        done = []
        run.run(scenarios, lambda: done.append(1))
        assert len(done) == len(scenarios)
        with path.open() as stream:
            return list(csv.DictReader(stream)), said, run

    return go


def stages(rows, **columns):
    return [r["stage"] for r in rows if all(r[name] == str(v) for name, v in columns.items())]


def test_rows_of_a_run(monkeypatch, run, scenarios, fake_meter):
    monkeypatch.setattr("sys.argv", ["bin/hata-sglang", "bench", "op"])
    meter = fake_meter()
    rows, said, result = run(scenarios, meter)
    assert not said
    assert result.failed == 0
    place = {"context": 65536, "batch": 16}
    assert stages(rows, **place, k=512, method="hata") == ["encode", "rank", "attend", "layer"]
    # Once for all budgets, methods and bits.
    assert stages(rows, **place, method="dense") == ["dense, tensor cores", "dense, cuda cores"]
    assert meter.calls.count("dense True") == 4
    assert meter.calls.count("copy") == 1
    layer = next(r for r in rows if r["stage"] == "layer" and r["k"] == "512")
    dense = next(r for r in rows if r["stage"] == "dense, tensor cores")
    assert float(layer["speedup"]) == pytest.approx(
        float(dense["p50_us"]) / float(layer["p50_us"]), rel=0.01
    )
    assert float(layer["share_of_copy"]) == pytest.approx(1, abs=0.01)
    for column in ("commit", "date", "device", "torch", "triton", "sglang", "flashinfer"):
        assert layer[column], column
    assert layer["command"] == "hata-sglang bench op"


def test_a_peer_that_fails_has_a_row_that_says_so(run, scenarios, fake_meter):
    rows, _, _ = run(scenarios[:1], fake_meter())
    (row,) = [r for r in rows if r["stage"] == "dense, cuda cores"]
    assert (row["p50_us"], row["note"]) == ("", "failed: ValueError: a group of 7 heads")


def test_exact_is_left_out_above_two_gigabytes(run, scenarios, fake_meter):
    meter = fake_meter()
    rows, _, _ = run(scenarios, meter)
    (row,) = [r for r in rows if (r["method"], r["batch"], r["context"], r["k"])
              == ("exact", "16", "65536", "512")]  # fmt: skip
    assert row["p50_us"] == row["speedup"] == ""
    assert row["note"].startswith("skipped: 2.4 GB of gathered keys")
    assert meter.calls.count("exact") == 6


def test_a_second_run_measures_what_is_missing(run, scenarios, fake_meter):
    first, _, _ = run(scenarios[:3], fake_meter())
    meter = fake_meter()
    rows, _, _ = run(scenarios, meter)
    assert rows[: len(first)] == first
    assert [call for call in meter.calls if call.startswith("open")] == [
        f"open {scenario}" for scenario in scenarios[3:]
    ]
    keys = [tuple(row[key] for key in KEYS) for row in rows]
    assert len(keys) == len(set(keys))
    # The dense time of the first run's file gives the speed-up of the second's layers.
    assert all(r["speedup"] for r in rows if r["stage"] == "layer")
    meter = fake_meter()
    assert run(scenarios, meter)[0] == rows
    assert meter.calls == ["release"]


def test_bits_and_methods_share_dense_and_exact(run, fake_meter):
    lists = {"contexts": [8192], "batches": [1], "budgets": [512], "bits": [64, 128]}
    meter = fake_meter()
    rows, _, _ = run(make_scenarios("quick", **lists), meter)
    assert len([r for r in rows if r["stage"] == "layer"]) == 4
    assert meter.calls.count("exact") == meter.calls.count("dense True") == 1


def test_what_does_not_fit_is_skipped_with_a_reason(run, scenarios, fake_meter):
    meter = fake_meter(room=3 * 10**9)
    rows, said, result = run(scenarios, meter)
    assert len(said) == 2  # both budgets of 16 x 64K
    assert "GB of GPU memory missing" in said[0]
    skipped = [r for r in rows if r["note"].startswith("skipped: 1.3 GB of GPU memory missing")]
    assert [(r["stage"], r["p50_us"]) for r in skipped] == [("layer", "")] * 2
    assert result.failed == 0
    assert not any(call.startswith("open") and "16 x 64K" in call for call in meter.calls)


def test_out_of_memory_is_a_skip(run, scenarios, fake_meter):
    rows, said, result = run(scenarios[:1], fake_meter(fail=fake_meter.TOO_LARGE()))
    assert [r["note"] for r in rows] == ["skipped: out of GPU memory"]
    assert result.failed == 0
    assert len(said) == 1


def test_a_failure_is_said_and_tried_again(run, scenarios, fake_meter):
    rows, said, result = run(scenarios[:2], fake_meter(fail=RuntimeError("a\nkernel broke")))
    assert rows == []
    assert result.failed == 2
    assert said[0].endswith("RuntimeError: a kernel broke")
    rows, _, result = run(scenarios[:2], fake_meter())
    assert result.failed == 0
    assert len(stages(rows, stage="layer")) == 2
