"""``hata-sglang bench serve``: servers one after the other, their workloads as rows of a CSV."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hata_sglang.bench.load import send, speed
from hata_sglang.bench.serve_arms import ServeArm
from hata_sglang.bench.versions import VERSIONS
from hata_sglang.bench.workloads import FIRST_TOKEN, Workload
from hata_sglang.errors import HataError
from hata_sglang.evaluation.results import ResultFile
from hata_sglang.evaluation.server import ServerProcess

KEYS = ("arm", "model", "weights", "workload", "users", "prompt_tokens", "new_tokens")
#: What `run_workload` measures, with digits.
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
    "pool_tokens": 0,
    "share_read": 5,
}
COLUMNS = (*KEYS, "backend", "inner_backend", *MEASURED, "note", *VERSIONS)
#: Requests before the first that is timed: kernels are compiled and loaded on their first use.
WARM_UP_TOKENS, WARM_UP_OUTPUT = 2048, 8
#: Seconds that a server may take until it is idle after its last answer.
IDLE_S = 10


def run_workload(
    server: ServerProcess, arm: ServeArm, workload: Workload, vocabulary: int
) -> dict[str, Any]:
    """Run one workload on an empty radix cache.

    Parameters
    ----------
    server : ServerProcess
    arm : ServeArm
        What the server runs.
    workload : Workload
    vocabulary : int
        Token ids of prompts are below it.

    Returns
    -------
    dict
        `MEASURED`, empty where there is nothing to measure, and ``note``. Those of `load.speed`;
        ``prefill_s``: seconds until every prompt was read, or the document of ``shared`` before the
        users came; ``pool_tokens``: of the KV cache; ``share_read``: of the context by hata's
        sparse layers.

    Raises
    ------
    HataError
        If the server does not answer, or decodes with hata where the arm has none, or without.
    """
    server.client.request(f"/flush_cache?timeout={IDLE_S}", {})
    before = server.client.counters()
    if (before is not None) != (arm.backend == "hata"):
        raise HataError(f"arm {arm.name}: expected hata's counters in its server alone")
    document, prompts = workload.prompts(vocabulary)
    read = send(server.base_url, [document], 1)[0].ttft if document else None
    result = speed(send(server.base_url, prompts, workload.output))
    state = server.client.state()
    result["prefill_s"] = result["ttft_max_s"] if read is None else read
    result["pool_tokens"] = state.get("memory_usage", {}).get("token_capacity")
    if before is not None:
        attended, context = (
            state["hata"][key] - before[key] for key in ("tokens_attended", "tokens_in_context")
        )
        if not context:
            raise HataError(f"{workload}: hata's counters say that it decoded nothing")
        result["share_read"] = attended / context
    row: dict[str, Any] = dict.fromkeys(MEASURED, "")
    row |= {
        name: round(value, MEASURED[name] or None)
        for name, value in result.items()
        if value is not None
    }
    no_steady = result["decode_tokens_per_s"] is None
    row["note"] = "no steady state: a user ended before the last one began" if no_steady else ""
    return row


def run_arms(
    arms: Sequence[ServeArm],
    workloads: Sequence[Workload],
    results: ResultFile,
    *,
    model: str,
    weights: str,
    vocabulary: int,
) -> list[str]:
    """Run every arm's workloads that are not in the file yet.

    Parameters
    ----------
    arms : sequence of ServeArm
    workloads : sequence of Workload
    results : ResultFile
        Of `COLUMNS` and `KEYS`. Logs go to its folder.
    model, weights : str
        Columns.
    vocabulary : int
        Token ids of prompts are below it.

    Returns
    -------
    list of str
        The names of arms that failed; their reasons were printed.
    """
    failed = []
    for arm in arms:

        def keys(workload: Workload, name: str = arm.name) -> dict[str, Any]:
            sizes = (workload.users, workload.prompt, workload.output)
            return dict(zip(KEYS, (name, model, weights, workload.name, *sizes), strict=True))

        left = [workload for workload in workloads if not results.has(keys(workload))]
        if not left:
            print(f"{arm.name}: all {len(workloads)} rows are in {results.path}", flush=True)
            continue
        log = results.path.with_suffix(f".{arm.name}.log")
        print(f"{arm.name}: starting SGLang's server, log in {log}", flush=True)
        try:
            with ServerProcess(arm.flags, log=log) as server:
                longest = min(WARM_UP_TOKENS, max(workload.prompt for workload in left))
                prompt = [FIRST_TOKEN + i % 64 for i in range(longest)]
                send(server.base_url, [prompt, prompt[: longest // 2 + 1]], WARM_UP_OUTPUT)
                for workload in left:
                    row = keys(workload) | run_workload(server, arm, workload, vocabulary)
                    row |= {"backend": arm.backend, "inner_backend": arm.inner}
                    results.append([row | VERSIONS])
                    filled = (f"{name}={value}" for name, value in row.items() if value != "")
                    print(*filled, flush=True)
        except (HataError, OSError) as error:
            failed.append(arm.name)
            print(f"arm {arm.name} failed (log in {log}): {error}", flush=True)
    return failed
