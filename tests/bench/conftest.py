"""A small CSV of each command, as the commands write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from hata_sglang.bench.op_rows import COLUMNS, KEYS, make_row, stage_bytes
from hata_sglang.bench.scenarios import Scenario
from hata_sglang.bench.shapes import SHAPES
from hata_sglang.bench.timing import Timing
from hata_sglang.evaluation.results import ResultFile

COPY = 2.5e6  # bytes per microsecond: 2,500 GB/s
LLAMA = SHAPES["llama-3.1-8b"]


@pytest.fixture
def scenarios():
    """Some of `scaling`: two points against every axis, and users of one document."""
    sizes = [(1, 32, 512), (8, 32, 512), (1, 128, 2048), (1, 128, 512)]
    made = [Scenario(LLAMA, batch, context * 1024, k, "hata") for batch, context, k in sizes]
    return [*made, Scenario(LLAMA, 4, 33 * 1024, 512, "hata", shared=32 * 1024)]


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
arm,model,weights,workload,users,prompt_tokens,ttft_p50_s,itl_p50_ms,itl_p99_ms,\
decode_tokens_per_s,note,device
stock,Llama,dummy weights,one,1,131072,21.5,14.2,15.0,70.1,,NVIDIA H100
stock,Llama,dummy weights,shared,32,100200,0.9,40.1,55.0,790.0,,NVIDIA H100
stock,Llama,dummy weights,shared,128,100200,2.9,,,,no steady state,NVIDIA H100
hata,Llama,dummy weights,one,1,131072,21.6,9.9,10.5,101.0,,NVIDIA H100
hata,Llama,dummy weights,shared,32,100200,0.9,12.1,15.0,2600.0,,NVIDIA H100
"""


@pytest.fixture
def serve_csv(tmp_path: Path) -> Path:
    """Two arms, one workload with two numbers of users, measurements that are missing."""
    path = tmp_path / "serve.csv"
    path.write_text(SERVE_CSV)
    return path
