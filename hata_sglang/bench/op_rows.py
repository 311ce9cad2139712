"""Rows of ``hata-sglang bench op``: what was timed, the bytes it cannot do without, and speeds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hata_sglang.bench.scenarios import Scenario
from hata_sglang.bench.versions import VERSIONS

if TYPE_CHECKING:
    from hata_sglang.bench.timing import Timing

KEYS = ("shape", "batch", "context", "shared", "k", "method", "bits", "stage")
COLUMNS = (
    "shape",
    "q_heads",
    "kv_heads",
    "dim",
    *KEYS[1:],
    "p20_us",
    "p50_us",
    "p80_us",
    "bytes",
    "gb_per_s",
    "share_of_copy",
    "speedup",
    "note",
    "copy_gb_per_s",
    *VERSIONS,
)
DENSE, EXACT, LAYER = "dense", "exact", "layer"
DENSE_STAGES = {"dense, tensor cores": True, "dense, cuda cores": False}
#: Planes of an asymmetric query: `AsymmetricEncoder`'s default, and that of trained weights.
PLANES = 4


def stage_bytes(scenario: Scenario) -> dict[str, int]:
    """Bytes that each stage has to move between the chip and its memory, at least.

    Parameters
    ----------
    scenario : Scenario

    Returns
    -------
    dict of str to int
        By stage. ``rank/take_kernel`` is not in it: what it reads depends on the scores. The
        layer's is the sum of encode, rank and attend.
    """
    # They import Triton and PyTorch: not before a command needs them.
    from hata_kernels.rank.floor import SAMPLE
    from hata_kernels.rows import RowGroups
    from hata_kernels.score.distance import DISTANCES

    shape, bits, batch, tokens = scenario.shape, scenario.bits, scenario.batch, scenario.tokens
    heads, dim, group = shape.kv_heads, shape.dim, shape.group
    weights = heads * dim * bits * 2
    query_codes = batch * shape.q_heads * bits // 8
    if scenario.method == "asymmetric":
        # Projections of keys and of whole groups, residual weights in bf16; two float32 biases.
        weights += heads * (group * dim * bits + (bits // 2) ** 2) * 2 + heads * 2 * bits * 4
        # And one by distance, which a query's codes have beside them in whole numbers.
        weights += heads * DISTANCES * 4
        query_codes = batch * heads * (PLANES * bits // 8 + DISTANCES * 4)
    vectors = batch * shape.q_heads * dim * 2
    token = heads * bits // 8 + 4  # its codes and its slot
    kept = batch * heads * scenario.k
    new_keys = batch * heads * (dim * 2 + bits // 8)  # and their codes
    stages = {
        "encode": weights + vectors + new_keys + query_codes,
        "rank": query_codes + tokens * token + kept * 4,
        "attend": kept * (2 * 2 * dim + 4) + 2 * vectors,
    }
    stages[LAYER] = sum(stages.values())
    stages["attend, flashinfer"] = stages["attend"]
    # Of a shared document every row samples the same tokens.
    rows = 1 if scenario.shared else batch
    stages["rank/floor_kernel"] = rows * min(SAMPLE, scenario.context) * token
    # Whole units of what enough users share are scored once for all of them.
    together = scenario.shared // RowGroups.UNIT * RowGroups.UNIT * (batch >= RowGroups.LEAST)
    stages["rank/filter_kernel"] = query_codes + (tokens - together) * token
    if together:
        # A query is a byte per bit of a code, and a base, whatever its planes.
        stages["rank/shared_kernel"] = together * token + batch * heads * (bits + 4)
    stages[EXACT] = tokens * (heads * dim * 2 + 4) + stages["attend"]
    dense = tokens * (2 * 2 * heads * dim + 4) + 2 * vectors
    return stages | dict.fromkeys(("dense layer", *DENSE_STAGES), dense)


def key_of(scenario: Scenario, stage: str) -> dict[str, Any]:
    """The columns that tell rows apart; dense rows have no budget, peers no bits."""
    method, k, bits = scenario.method, scenario.k, scenario.bits
    if stage in DENSE_STAGES:
        method, k, bits = DENSE, "", ""
    elif stage == EXACT:
        method, bits = EXACT, ""
    size = (scenario.shape.name, scenario.batch, scenario.context, scenario.shared)
    return dict(zip(KEYS, (*size, k, method, bits, stage), strict=True))


def make_row(
    scenario: Scenario,
    stage: str,
    timing: Timing | None,
    copy: float,
    *,
    dense_us: float | None = None,
    note: str = "",
) -> dict[str, Any]:
    """One row of the CSV, without provenance.

    Parameters
    ----------
    scenario : Scenario
    stage : str
    timing : Timing or None
        Microseconds. None: it was not timed, and `note` says why; the columns stay empty.
    copy : float
        Measured bandwidth of a copy, bytes per microsecond.
    dense_us : float, optional
        Median of the best dense peer. Default: the row has no speed-up.
    note : str, default ""
    """
    shape, size = scenario.shape, stage_bytes(scenario).get(stage)
    row = dict.fromkeys(COLUMNS, "") | key_of(scenario, stage) | VERSIONS
    row |= {"q_heads": shape.q_heads, "kv_heads": shape.kv_heads, "dim": shape.dim}
    row |= {"note": note, "copy_gb_per_s": round(copy / 1e3, 1)}
    if size is not None:
        row["bytes"] = size
    if timing is None:
        return row
    row |= {name: round(getattr(timing, name[:3]), 2) for name in ("p20_us", "p50_us", "p80_us")}
    if size is not None:
        row["gb_per_s"] = round(size / timing.p50 / 1e3, 1)
        row["share_of_copy"] = round(size / timing.p50 / copy, 4)
    if dense_us is not None and stage in (LAYER, EXACT):
        row["speedup"] = round(dense_us / timing.p50, 3)
    return row
