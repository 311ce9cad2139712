"""Which kernels a decode step of SGLang's engine spends its time in, with hata and without.

    python benchmarks/engine_profile.py --arm random --out engine_profile.csv

Llama-3.1-8B's shape with dummy weights, as ``hata-sglang bench serve --shape`` runs it, under
SGLang's own profiler. One row per kernel of one step in the middle of each workload. Add long
requests that share nothing, as many as the pool holds, with ``--unrelated 6x130000 --server-args
"--mem-fraction-static 0.9"`` (one NVIDIA H200).
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

from hata_sglang.bench.engine_arm import Arm
from hata_sglang.bench.models import write_shape
from hata_sglang.bench.serve_arms import (
    RANDOM_BITS,
    check_server_args,
    common_flags,
    context_length,
    make_arms,
    random_arm,
)
from hata_sglang.bench.workloads import Workload, read_size
from hata_sglang.evaluation.results import ResultFile

OUTPUT = 40
WORKLOADS = (
    Workload("one", 1, 130000, OUTPUT),
    Workload("shared", 32, 100000, OUTPUT, question=200),
    Workload("short", 64, 500, OUTPUT),
)
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


def profile(arm: Arm, workload: Workload, vocabulary: int, folder: Path) -> Path:
    """Run a workload twice, the second time with its prompts cached and profiled."""
    prompts = workload.prompts(vocabulary, 0)
    if document := workload.document(vocabulary, 0):
        arm.ask([document], 1)
    arm.ask(prompts, 8)
    arm.engine.start_profile(output_dir=str(folder), activities=["GPU"])
    arm.ask(prompts, workload.output)
    arm.engine.stop_profile()
    for _ in range(120):
        if found := list(folder.glob("*.gz")):
            time.sleep(2)  # it is still being written
            return found[0]
        time.sleep(0.5)
    raise RuntimeError(f"SGLang's profiler wrote nothing to {folder} within a minute")


def main() -> None:
    """Profile the arms one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arm", choices=("stock", "random"), required=True)
    parser.add_argument("--unrelated", type=read_size, metavar="USERSxTOKENS")
    parser.add_argument("--server-args", default="", metavar="FLAGS", help="of SGLang")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    more = shlex.split(args.server_args)
    check_server_args(more)
    results = ResultFile(args.out, COLUMNS, KEYS)
    workloads = WORKLOADS
    if args.unrelated:
        workloads += (Workload("unrelated", *args.unrelated, OUTPUT),)
    with tempfile.TemporaryDirectory(prefix="hata-profile-") as name:
        folder = Path(name)
        model = write_shape("llama-3.1-8b", folder, context_length(workloads))
        vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
        flags = common_flags(model, workloads, on_cpu=False, dummy=True, more=more)
        arms = make_arms(flags, "flashinfer", [random_arm(RANDOM_BITS, folder)], folder)
        flags = next(each.flags for each in arms if each.name == args.arm)
        arm = Arm(list(flags), vocabulary)
        arm.warm_up(2000)
        for workload in workloads:
            traces = folder / workload.name
            traces.mkdir()
            times, step = kernels_of_a_step(profile(arm, workload, vocabulary, traces))
            place = (args.arm, workload.name, workload.users, workload.prompt)
            rows = [
                dict(zip(COLUMNS, (*place, kernel, len(each), round(sum(each), 1), round(step, 1)),
                         strict=True))
                for kernel, each in times.items()
            ]  # fmt: skip
            results.append(sorted(rows, key=lambda row: -row["us"]))
        arm.engine.shutdown()


if __name__ == "__main__":
    main()
