"""`bench serve` for real: SGLang's server on the CPU, stock and with hata, dummy weights."""

from __future__ import annotations

import csv
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

YAML = """
method: random
bits: 64
budget: 128
sink: 8
recent: 16
dense_layers: [0]
"""
OUTPUT = 12
SIZES = {"one": "1x400", "unrelated": "2x300", "shared": "3x350", "short": "4x40"}


def bench(tmp_path, *more):
    (tmp_path / "sparse.yaml").write_text(YAML)
    argv = ["bench", "serve", "--shape", "tiny", "--output-tokens", str(OUTPUT), "--workloads"]
    argv += [f"{name}={size}" for name, size in SIZES.items()]
    argv += ["--config", str(tmp_path / "sparse.yaml"), "--out", str(tmp_path / "s.csv")]
    command = [sys.executable, "-m", "hata_sglang.cli", *argv, *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1100, check=False)
    with (tmp_path / "s.csv").open() as stream:
        return done, list(csv.DictReader(stream))


def test_both_arms(tmp_path):
    done, rows = bench(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [(row["arm"], row["workload"]) for row in rows] == [
        (arm, name) for arm in ("stock", "sparse") for name in SIZES
    ]
    for row in rows:
        assert 0 < float(row["ttft_p50_s"]) <= float(row["ttft_max_s"])
        if row["users"] == "1":  # on a busy machine one of several may end before another begins
            assert float(row["decode_tokens_per_s"]) > 0
            assert 0 < float(row["itl_p50_ms"]) <= float(row["itl_p99_ms"])
            assert row["note"] == ""
        assert int(row["output_tokens"]) == OUTPUT * int(row["users"])
        assert (row["weights"], row["inner_backend"]) == ("dummy weights", "torch_native")
        shared = row["workload"] == "shared"
        # The document was read before the users came; nobody else finds anything.
        assert int(row["cached_tokens"]) == (3 * 350 if shared else 0)
        if row["arm"] == "stock":
            assert row["share_read"] == ""
        elif row["workload"] == "short":
            assert float(row["share_read"]) == 1  # shorter than the budget
        else:
            assert float(row["share_read"]) == pytest.approx(128 / int(row["prompt_tokens"]), 0.05)

    again, same = bench(tmp_path)
    assert again.returncode == 0
    assert same == rows
    assert "stock: all 4 rows are in" in again.stdout


def test_an_engine_that_does_not_start(tmp_path):
    done, rows = bench(tmp_path, "--server-args", "--dtype complex128")
    assert (done.returncode, rows) == (1, [])
    assert done.stdout.count(" failed (log in ") == 2
    assert "complex128" in done.stdout
