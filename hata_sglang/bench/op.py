"""``hata-sglang bench op``: a sparse layer's stages and its peers, scenario by scenario."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hata_kernels.attend import fits_dense
from hata_sglang.bench.op_rows import DENSE_STAGES, EXACT, LAYER, key_of, make_row
from hata_sglang.bench.peers import exact_slots, flashinfer_attend, flashinfer_dense, our_dense
from hata_sglang.bench.scenarios import Scenario
from hata_sglang.bench.sparse_layer import SparseLayer
from hata_sglang.bench.timing import Timing, copy_bandwidth, kernel_times, time_layers
from hata_sglang.evaluation.results import ResultFile

#: The launches of the ranking, in order.
RANK_KERNELS = ("floor_kernel", "shared_kernel", "filter_kernel", "take_kernel")
#: Exact top-k is not tried with more bytes of gathered keys and scores.
MAX_EXACT_BYTES = 2 * 10**9


def time_stages(sparse: SparseLayer) -> dict[str, Timing]:
    """Time every stage, the launches of the ranking (``rank/filter_kernel``), and the layer."""
    count, cold = len(sparse.layers), sparse.cold_selections()
    by_flashinfer = flashinfer_attend(sparse)
    times = {
        "encode": time_layers(sparse.encode, count),
        "rank": time_layers(sparse.rank, count),
        "attend": time_layers(lambda i: sparse.attend_over(*cold[i]), len(cold)),
        "attend, flashinfer": time_layers(lambda i: by_flashinfer(*cold[i]), len(cold)),
        LAYER: time_layers(sparse.whole, count),
    }
    shape = sparse.scenario.shape
    if sparse.scenario.shared:
        times["group rows"] = time_layers(sparse.group, count)
        times["rank, rows apart"] = time_layers(sparse.rank_apart, count)
        if fits_dense(shape.q_heads, shape.kv_heads, shape.dim, sparse.out.device):
            times["dense layer"] = time_layers(our_dense(sparse), count)
    launches = kernel_times(sparse.rank, count, RANK_KERNELS)
    return times | {f"rank/{name}": timing for name, timing in launches.items()}


def time_exact(sparse: SparseLayer) -> tuple[Timing | None, str]:
    """Time exact top-k in plain torch and the same attention; or say why not."""
    scenario, shape = sparse.scenario, sparse.scenario.shape
    # Gathered keys (bf16) and their places (int32), logits (bf16) and scores (float32).
    token = shape.kv_heads * (2 * shape.dim + 4) + (2 + 4) * shape.q_heads
    size = scenario.batch * scenario.context * token
    if size > MAX_EXACT_BYTES:
        return None, f"skipped: {size / 1e9:.1f} GB of gathered keys and scores"

    def step(i: int) -> None:
        layer = sparse.layers[i]
        sparse.attend_over(layer, exact_slots(layer, scenario.k))

    return time_layers(step, len(sparse.layers)), ""


def time_dense(sparse: SparseLayer, tensor_cores: bool) -> tuple[Timing | None, str]:
    """Time FlashInfer's dense decode; or say why not: it may not support a group's size."""
    try:
        return time_layers(flashinfer_dense(sparse, tensor_cores), len(sparse.layers)), ""
    except (RuntimeError, ValueError) as error:
        return None, f"failed: {' '.join(str(error).split())[:200]}"


def measure(scenario: Scenario, copy: float) -> list[dict[str, Any]]:
    """Rows of one scenario.

    Parameters
    ----------
    scenario : Scenario
    copy : float
        Measured bandwidth of a copy, bytes per microsecond.
    """
    sparse = SparseLayer(scenario)
    peers = {stage: time_dense(sparse, cores) for stage, cores in DENSE_STAGES.items()}
    dense = min((timing.p50 for timing, _ in peers.values() if timing is not None), default=None)
    ours = {stage: (timing, "") for stage, timing in time_stages(sparse).items()}
    every = peers | ours | {EXACT: time_exact(sparse)}
    return [
        make_row(scenario, stage, timing, copy, dense_us=dense, note=note)
        for stage, (timing, note) in every.items()
    ]


def run_scenarios(scenarios: Sequence[Scenario], results: ResultFile) -> int:
    """Append the rows that a file lacks.

    Parameters
    ----------
    scenarios : sequence of Scenario
    results : ResultFile
        Of `op_rows.COLUMNS` and `op_rows.KEYS`.

    Returns
    -------
    int
        How many scenarios failed. They have no rows: another run tries them again.
    """
    copy, failed = None, 0
    for number, scenario in enumerate(scenarios, 1):
        if results.has(key_of(scenario, LAYER)):
            continue
        print(f"{number} of {len(scenarios)}: {scenario}", flush=True)
        copy = copy or copy_bandwidth()
        try:
            rows = measure(scenario, copy)
        except Exception as error:  # of one scenario: the others are worth having
            failed += 1
            print(f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
            continue
        # Peers do not depend on method and bits, dense attention not on the budget.
        results.append([row for row in rows if not results.has(row)])
    return failed
