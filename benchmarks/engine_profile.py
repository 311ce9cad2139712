"""Which kernels a decode step of SGLang's engine spends its time in, with hata and without.

    python benchmarks/engine_profile.py --arm random --out engine_profile.csv

Llama-3.1-8B's shape with dummy weights, as ``hata-sglang bench serve --shape`` runs it, under
SGLang's own profiler. One row per kernel of one step in the middle of each workload. Long requests
that share nothing, as many as the pool of one NVIDIA H200 holds: ``--workloads unrelated
--server-args "--mem-fraction-static 0.9"``.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import shlex
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from hata_sglang.bench.load import send
from hata_sglang.bench.serve import post, warm_up
from hata_sglang.bench.serve_arms import (
    RANDOM_BITS,
    check_server_args,
    common_flags,
    context_length,
    make_arms,
    random_codes,
)
from hata_sglang.bench.shapes import SHAPES, write_model
from hata_sglang.bench.workloads import Workload, read_workload
from hata_sglang.evaluation.results import ResultFile
from hata_sglang.evaluation.server import ServerProcess

OUTPUT, QUESTION = 40, 200
DEFAULT = {"one": (1, 130000), "shared": (32, 100000), "short": (64, 500), "unrelated": (6, 130000)}
KEYS = ("arm", "workload", "users", "prompt_tokens", "kernel")
COLUMNS = (*KEYS, "launches", "us", "step_us")
#: A step ends with the choice of its tokens.
LAST_KERNEL = "argmax"
#: What the names of a sparse layer's kernels begin with, the first one's first.
OURS = (
    "_linear_step_kernel",
    "floor_kernel",
    "shared_kernel",
    "filter_kernel",
    "take_kernel",
    "_part_kernel",
    "_merge_kernel",
)
SPARSE = "sparse layers: from the first of hata's kernels to the end of the last"


def kernels_of_a_step(trace: Path) -> tuple[dict[str, list[float]], float]:
    """Times of every kernel of one step by name, and what the step took, in microseconds.

    Kernels whose launches overlap count the time that they wait for one another: `SPARSE` is what
    those of the sparse layers take together.
    """
    with gzip.open(trace) as stream:
        events = json.load(stream)["traceEvents"]
    kernels = [event for event in events if event.get("cat") in ("kernel", "gpu_memcpy")]
    kernels.sort(key=lambda event: event["ts"])
    last = [i for i, event in enumerate(kernels) if LAST_KERNEL in event["name"].lower()]
    begin, end = last[len(last) // 2], last[len(last) // 2 + 1]
    times: dict[str, list[float]] = defaultdict(list)

    def ends(event: dict[str, Any]) -> float:
        return event["ts"] + event["dur"]

    step = kernels[begin + 1 : end + 1]
    for event in step:
        times[event["name"]].append(event["dur"])
    firsts = [i for i, event in enumerate(step) if event["name"].startswith(OURS[0])]
    for first, after in itertools.pairwise([*firsts, len(step)]):
        ours = [event for event in step[first:after] if event["name"].startswith(OURS)]
        times[SPARSE].append(max(map(ends, ours)) - ours[0]["ts"])
    return times, ends(kernels[end]) - ends(kernels[begin])


def profile(server: ServerProcess, workload: Workload, vocabulary: int, folder: Path) -> Path:
    """Run a workload twice, the second time with its prompts cached and profiled."""
    document, prompts = workload.prompts(vocabulary)
    if document:
        send(server.base_url, [document], 1)
    send(server.base_url, prompts, 8)
    post(server, "/start_profile", {"output_dir": str(folder), "activities": ["GPU"]})
    send(server.base_url, prompts, workload.output)
    post(server, "/stop_profile")
    for _ in range(120):
        if found := list(folder.glob("*.gz")):
            time.sleep(2)  # it is still being written
            return found[0]
        time.sleep(0.5)
    raise RuntimeError(f"SGLang's profiler wrote nothing to {folder} within a minute")


def main() -> None:
    """Profile one arm."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arm", choices=("stock", "random"), required=True)
    parser.add_argument(
        "--workloads",
        nargs="+",
        type=read_workload,
        default=[(name, None) for name in ("one", "shared", "short")],
        metavar="NAME=USERSxTOKENS",
    )
    parser.add_argument("--server-args", default="", metavar="FLAGS", help="of SGLang")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    more = shlex.split(args.server_args)
    check_server_args(more)
    results = ResultFile(args.out, COLUMNS, KEYS)
    workloads = [
        Workload(name, *(size or DEFAULT[name]), OUTPUT, QUESTION if name == "shared" else 0)
        for name, size in args.workloads
    ]
    shape = SHAPES["llama-3.1-8b"]
    with tempfile.TemporaryDirectory(prefix="hata-profile-") as name:
        folder = Path(name)
        model = write_model(shape, folder, context_length(workloads))
        flags = common_flags(model, workloads, on_cpu=False, dummy=True, more=more)
        arms = make_arms(flags, "flashinfer", [random_codes(RANDOM_BITS, folder)], folder)
        (arm,) = (each for each in arms if each.name == args.arm)
        with ServerProcess(arm.flags) as server:
            warm_up(server, 2000)
            for workload in workloads:
                traces = folder / workload.name
                traces.mkdir()
                trace = profile(server, workload, shape.vocabulary, traces)
                times, step = kernels_of_a_step(trace)
                place = (args.arm, workload.name, workload.users, workload.prompt)
                rows = [
                    (*place, kernel, len(each), round(sum(each), 1), round(step, 1))
                    for kernel, each in times.items()
                ]
                rows = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
                results.append(sorted(rows, key=lambda row: -row["us"]))


if __name__ == "__main__":
    main()
