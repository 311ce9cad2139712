"""A small CSV of each command, as the commands write them, and a GPU that is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from hata_sglang.bench.op_rows import COLUMNS, KEYS, make_row, stage_bytes
from hata_sglang.bench.presets import make_scenarios
from hata_sglang.bench.timing import Timing
from hata_sglang.evaluation.results import ResultFile

COPY = 2.5e6  # bytes per microsecond: 2,500 GB/s


class FakeMeter:
    """Times at the bandwidth of a copy; notes what it was asked."""

    class TOO_LARGE(Exception):
        pass

    def __init__(self, room=10**12, fail=None):
        self.room, self.fail, self.calls = room, fail, []
        self.scenario = None

    def copy_bandwidth(self):
        self.calls.append("copy")
        return COPY

    def missing_bytes(self, scenario):
        return scenario.dense_bytes - self.room

    def open(self, scenario):
        self.calls.append(f"open {scenario}")
        self.scenario = scenario

    def release(self):
        self.calls.append("release")

    def _time(self, stage):
        at = stage_bytes(self.scenario)[stage] / COPY
        return Timing(0.9 * at, at, 1.2 * at)

    def stages(self):
        if self.fail is not None:
            raise self.fail
        return {stage: self._time(stage) for stage in ("encode", "rank", "attend", "layer")}

    def dense(self, tensor_cores):
        self.calls.append(f"dense {tensor_cores}")
        if not tensor_cores:
            raise ValueError("a group of 7 heads")
        return self._time("dense, tensor cores")

    def exact(self):
        self.calls.append("exact")
        return self._time("exact")


@pytest.fixture
def fake_meter():
    """The class `FakeMeter`."""
    return FakeMeter


@pytest.fixture
def scenarios():
    """Two contexts, batches and budgets of one shape, in order."""
    return make_scenarios(
        "quick", contexts=[8192, 65536], batches=[1, 16], budgets=[512, 2048], methods=["hata"]
    )


@pytest.fixture
def op_csv(tmp_path: Path, scenarios) -> Path:
    """Layers, exact top-k and dense attention at the bandwidth of a copy."""
    path = tmp_path / "op.csv"
    results = ResultFile(path, COLUMNS, KEYS)
    for scenario in scenarios:
        for stage, size in stage_bytes(scenario).items():
            at = size / COPY
            row = make_row(scenario, stage, Timing(0.9 * at, at, 1.2 * at), COPY)
            if not results.has(row):
                results.append([row])
    return path


SERVE_CSV = """\
arm,model,weights,workload,users,prompt_tokens,repeat,ttft_p50_s,itl_p50_ms,itl_p99_ms,\
decode_tokens_per_s,note,device
stock,Llama,dummy weights,one,1,131072,0,21.5,14.2,15.0,70.1,,NVIDIA H100
stock,Llama,dummy weights,shared,32,100200,0,0.9,40.1,55.0,790.0,,NVIDIA H100
stock,Llama,dummy weights,shared,128,100200,0,2.9,,,,no steady state,NVIDIA H100
hata,Llama,dummy weights,one,1,131072,0,21.6,9.9,10.5,101.0,,NVIDIA H100
hata,Llama,dummy weights,one,1,131072,1,21.7,9.8,10.4,102.0,,NVIDIA H100
hata,Llama,dummy weights,shared,32,100200,0,0.9,12.1,15.0,2600.0,,NVIDIA H100
hata,Llama,dummy weights,shared,128,100200,0,2.9,20.1,25.0,6300.0,,NVIDIA H100
"""


@pytest.fixture
def serve_csv(tmp_path: Path) -> Path:
    """Two arms, one workload with two numbers of users, one measurement that is missing."""
    path = tmp_path / "serve.csv"
    path.write_text(SERVE_CSV)
    return path
