"""Which kernels a decode step of SGLang's engine spends its time in, with hata and without.

    hata-sglang bench serve --shape llama-3.1-8b --output-tokens 40 --profile traces --out serve.csv
    python benchmarks/engine_profile.py traces --out engine_profile.csv

One row per kernel of one step in the middle of each workload.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from hata_sglang.evaluation.results import ResultFile

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


def main() -> None:
    """Read every profile of a folder that `bench serve --profile` filled."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("traces", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    results = ResultFile(args.out, COLUMNS, KEYS)
    for trace in sorted(args.traces.glob("*/*.gz")):
        arm, workload, size = trace.parent.name.rsplit("-", 2)
        times, step = kernels_of_a_step(trace)
        rows = [
            (
                arm,
                workload,
                *size.split("x"),
                kernel,
                len(each),
                round(sum(each), 1),
                round(step, 1),
            )
            for kernel, each in times.items()
        ]
        rows = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
        results.append(sorted(rows, key=lambda row: -row["us"]))


if __name__ == "__main__":
    main()
