"""Arms as processes: results as they come, failures with the log's tail, and what is done."""

import csv
import sys
import time
from pathlib import Path

import pytest

from hata_sglang.bench import serve
from hata_sglang.bench.serve import COLUMNS, KEYS, run_arms
from hata_sglang.bench.serve_arms import ServeArm
from hata_sglang.bench.workloads import Workload
from hata_sglang.evaluation.results import ResultFile

ASKED = [(Workload("one", 1, 64, 8), 0), (Workload("short", 2, 16, 8), 0)]

#: In the place of `python -m hata_sglang.bench.engine_arm`.
FAKE = """
import json, os, subprocess, sys, time
task = json.load(open(sys.argv[1]))
print("reading", *task["argv"], flush=True)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
out = open(sys.argv[2], "w")
for number, each in enumerate(task["asked"]):
    if "slow" in task["argv"]:
        time.sleep(600)
    if "broken" in task["argv"] and number == 1:
        print("the pool is too small", flush=True)
        sys.exit(3)
    result = {**each, "ttft_p50_s": 0.5, "itl_p50_ms": 7.0, "itl_p99_ms": 9.0, "steady_s": 1.0,
              "decode_tokens_per_s": 140.0, "output_tokens": 8, "share_read": 0.25}
    if each["workload"]["name"] == "short":
        result.update(itl_p50_ms=None, itl_p99_ms=None, decode_tokens_per_s=None)
    line = json.dumps(result) + "\\n"
    out.write(line[:9]); out.flush(); time.sleep(0.3)  # half a line is no result
    out.write(line[9:]); out.flush()
"""


@pytest.fixture
def go(tmp_path, monkeypatch):
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    monkeypatch.setattr(serve, "ARM_COMMAND", (sys.executable, str(script)))
    path = tmp_path / "serve.csv"

    def run(*flags, timeout=60):
        arms = [ServeArm(flag, "hata", "flashinfer", (flag,)) for flag in flags]
        said = []
        failed = run_arms(
            arms,
            ASKED,
            ResultFile(path, COLUMNS, KEYS),
            model="m",
            weights="dummy weights",
            vocabulary=100,
            folder=tmp_path,
            timeout=timeout,
            say=said.append,
        )
        with path.open() as stream:
            return failed, list(csv.DictReader(stream)), said

    return run


def child_of(tmp_path, arm):
    log = (tmp_path / f"serve.{arm}.log").read_text()
    return int(log.split("child ")[1].split()[0])


def ends(pid):
    """Whether a process ends within five seconds: a signal takes effect when it likes."""
    for _ in range(50):
        try:
            if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.1)
    return False


def test_rows(go, tmp_path):
    failed, (one, short), said = go("good")
    assert failed == []
    assert (one["arm"], one["workload"], one["users"], one["prompt_tokens"]) == (
        "good", "one", "1", "64"
    )  # fmt: skip
    assert (one["itl_p50_ms"], one["decode_tokens_per_s"], one["output_tokens"]) == (
        "7.0", "140.0", "8"
    )  # fmt: skip
    assert (one["share_read"], one["peak_gpu_memory_gb"], one["note"]) == ("0.25", "", "")
    assert one["weights"] == "dummy weights"
    assert short["itl_p50_ms"] == ""
    assert short["note"].startswith("no steady state")
    for column in ("commit", "date", "device", "torch", "triton", "sglang", "flashinfer"):
        assert one[column], column
    assert said[1] == "good: one 1x64: TTFT 0.5 s, ITL 7.0 ms (p99 9.0), 140.0 tokens/s"
    assert ends(child_of(tmp_path, "good"))


def test_an_arm_that_fails_does_not_end_the_others(go, tmp_path):
    failed, rows, said = go("broken", "good")
    assert failed == ["broken"]
    assert [(row["arm"], row["workload"]) for row in rows] == [
        ("broken", "one"),
        ("good", "one"),
        ("good", "short"),
    ]
    (error,) = [line for line in said if "failed" in line]
    assert "arm broken failed, exit code 3, with 1 workloads left" in error
    assert error.endswith("the pool is too small")
    assert ends(child_of(tmp_path, "broken"))


def test_timeout(go, tmp_path):
    failed, rows, said = go("slow", timeout=1.0)
    assert (failed, rows) == (["slow"], [])
    assert "after 1 s" in said[-1]
    assert ends(child_of(tmp_path, "slow"))


def test_done_workloads_are_not_run_again(go):
    go("broken")
    failed, rows, _ = go("good", "broken")
    assert failed == []  # what was left is its first workload now
    done = [(row["arm"], row["workload"]) for row in rows]
    assert sorted(done) == [(arm, name) for arm in ("broken", "good") for name in ("one", "short")]
    _, again, said = go("good", "broken")
    assert again == rows
    assert said == [f"{arm}: all 2 rows are in {said[0].split()[-1]}" for arm in ("good", "broken")]
