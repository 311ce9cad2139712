"""``hata-sglang bench serve``: engines one after the other, their workloads as rows of a CSV."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hata_sglang.bench.serve_arms import ServeArm
from hata_sglang.bench.versions import package_versions
from hata_sglang.bench.workloads import Workload
from hata_sglang.errors import HataError
from hata_sglang.evaluation.results import ResultFile
from hata_sglang.processes import GRACE_S, end_group

KEYS = (
    "arm",
    "model",
    "weights",
    "workload",
    "users",
    "prompt_tokens",
    "new_tokens",
    "repeat",
)
#: As `hata_sglang.bench.streaming.Speed` and `engine_arm.Arm.run` name them, with digits.
MEASURED = {
    "ttft_p50_s": 4,
    "ttft_max_s": 4,
    "prefill_s": 4,
    "itl_p50_ms": 3,
    "itl_p99_ms": 3,
    "decode_tokens_per_s": 2,
    "steady_s": 3,
    "output_tokens": 0,
    "cached_tokens": 0,
    "peak_gpu_memory_gb": 2,
    "pool_tokens": 0,
    "share_read": 5,
    "start_s": 1,
}
COLUMNS = (*KEYS, "backend", "inner_backend", *MEASURED, "note", "triton", "flashinfer")
#: Runs an arm; the names of two files follow.
ARM_COMMAND = (sys.executable, "-m", "hata_sglang.bench.engine_arm")
LOG_TAIL_LINES = 30
POLL_S = 0.2


class ArmError(HataError):
    """An engine ended, or took too long, before all its workloads were done."""


def key(arm: str, model: str, weights: str, workload: Workload, repeat: int) -> dict[str, Any]:
    """The columns that tell rows apart."""
    sizes = (workload.users, workload.prompt, workload.output)
    return dict(zip(KEYS, (arm, model, weights, workload.name, *sizes, repeat), strict=True))


def to_row(keys: Mapping[str, Any], arm: ServeArm, result: Mapping[str, Any]) -> dict[str, Any]:
    """One row of the CSV, without provenance.

    Parameters
    ----------
    keys : mapping
        From `key`.
    arm : ServeArm
    result : mapping
        A line of `hata_sglang.bench.engine_arm`; what it lacks stays empty.
    """
    row = {**keys, "backend": arm.backend, "inner_backend": arm.inner, **package_versions()}
    for name, digits in MEASURED.items():
        value = result.get(name)
        row[name] = "" if value is None else round(value, digits or None)
    no_steady = result["decode_tokens_per_s"] is None
    row["note"] = "no steady state: a user ended before the last one began" if no_steady else ""
    return row


def follow(
    arm: ServeArm, task: Mapping[str, Any], folder: Path, log: Path, timeout: float
) -> Iterator[dict[str, Any]]:
    """Run one arm's engine; give its results as they come.

    Parameters
    ----------
    arm : ServeArm
    task : mapping
        What `hata_sglang.bench.engine_arm` reads, without its flags.
    folder : Path
        For the files between the two processes.
    log : Path
        Gets the engine's output.
    timeout : float
        Seconds, start-up included.

    Raises
    ------
    ArmError
        With the log's tail.
    """
    asked, answers = folder / f"{arm.name}.json", folder / f"{arm.name}.jsonl"
    asked.write_text(json.dumps({**task, "argv": list(arm.flags)}))
    answers.write_text("")  # no results of a run before
    env = dict(os.environ)
    if "--device" in arm.flags:  # given for the CPU alone
        env["CUDA_VISIBLE_DEVICES"] = ""
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*ARM_COMMAND, str(asked), str(answers)],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,
        )
    end, left = time.monotonic() + timeout, len(task["asked"])
    try:
        with answers.open() as lines:
            while left:
                ended = process.poll() is not None  # before the read: nothing comes after it
                here = lines.tell()
                line = lines.readline()
                if line.endswith("\n"):
                    left -= 1
                    yield json.loads(line)
                    continue
                lines.seek(here)  # half a line: read it again
                if ended or time.monotonic() > end:
                    what = f"exit code {process.returncode}" if ended else f"after {timeout:.0f} s"
                    tail = log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
                    raise ArmError(
                        f"arm {arm.name} failed, {what}, with {left} workloads left. "
                        f"The end of {log}:\n" + "\n".join(tail)
                    )
                time.sleep(POLL_S)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)  # it shuts its engine down
    finally:
        end_group(process)


def run_arms(
    arms: Sequence[ServeArm],
    asked: Sequence[tuple[Workload, int]],
    results: ResultFile,
    *,
    model: str,
    weights: str,
    vocabulary: int,
    folder: Path,
    timeout: float,
    say: Callable[[str], None] = print,
) -> list[str]:
    """Run every arm's workloads that are not in the file yet.

    Parameters
    ----------
    arms : sequence of ServeArm
    asked : sequence of (Workload, int)
        Workloads and the number of the repetition.
    results : ResultFile
        Of `COLUMNS` and `KEYS`. Logs go to its folder.
    model, weights : str
        Columns.
    vocabulary : int
        Token ids of prompts are below it.
    folder : Path
        For temporary files.
    timeout : float
        Seconds for an arm.
    say : callable, default print
        Takes a line of progress.

    Returns
    -------
    list of str
        The names of arms that failed; `say` had their reasons.
    """
    failed = []
    for arm in arms:

        def keys(workload: Workload, repeat: int, name: str = arm.name) -> dict[str, Any]:
            return key(name, model, weights, workload, repeat)

        left = [pair for pair in asked if not results.has(keys(*pair))]
        if not left:
            say(f"{arm.name}: all {len(asked)} rows are in {results.path}")
            continue
        log = results.path.with_suffix(f".{arm.name}.log")
        say(f"{arm.name}: starting SGLang's engine, log in {log}")
        pairs = [{"workload": each.as_dict(), "repeat": repeat} for each, repeat in left]
        task = {"asked": pairs, "vocabulary": vocabulary}
        try:
            for result in follow(arm, task, folder, log, timeout):
                workload, repeat = Workload(**result["workload"]), result["repeat"]
                row = to_row(keys(workload, repeat), arm, result)
                results.append([row])
                say(describe(arm.name, workload, row))
        except ArmError as error:
            failed.append(arm.name)
            say(str(error))
    return failed


def describe(arm: str, workload: Workload, row: Mapping[str, Any]) -> str:
    """One line for people."""
    if row["note"]:
        return f"{arm}: {workload}: TTFT {row['ttft_p50_s']} s, {row['note']}"
    return (
        f"{arm}: {workload}: TTFT {row['ttft_p50_s']} s, ITL {row['itl_p50_ms']} ms "
        f"(p99 {row['itl_p99_ms']}), {row['decode_tokens_per_s']} tokens/s"
    )
