"""Rows of ``hata-sglang bench op``: what was timed, the bytes it cannot do without, and speeds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hata_sglang.bench.shapes import Scenario
from hata_sglang.bench.versions import package_versions

if TYPE_CHECKING:
    from hata_sglang.bench.timing import Timing

KEYS = ("shape", "batch", "context", "shared", "k", "method", "bits", "stage")
COLUMNS = (
    "shape",
    "q_heads",
    "kv_heads",
    "dim",
    "batch",
    "context",
    "shared",
    "k",
    "method",
    "bits",
    "stage",
    "p20_us",
    "p50_us",
    "p80_us",
    "bytes",
    "gb_per_s",
    "share_of_copy",
    "speedup",
    "note",
    "copy_gb_per_s",
    "triton",
    "flashinfer",
)
DENSE, EXACT, LAYER = "dense", "exact", "layer"
#: Ours, which a model's dense layers take.
DENSE_LAYER = "dense layer"
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
    # Triton is imported with it: not before a command needs it.
    from hata_kernels.rank.floor import SAMPLE

    shape, bits, batch = scenario.shape, scenario.bits, scenario.batch
    heads, dim, group = shape.kv_heads, shape.dim, shape.group
    weights = heads * dim * bits * 2
    query_codes = batch * shape.q_heads * bits // 8
    if scenario.method == "asymmetric":
        # Projections of keys and of whole groups, residual weights in bf16; two float32 biases.
        weights += heads * (group * dim * bits + (bits // 2) ** 2) * 2 + heads * 2 * bits * 4
        query_codes = batch * heads * PLANES * bits // 8
    vectors = batch * shape.q_heads * dim * 2
    read = scenario.bytes_read
    picked = batch * heads * min(scenario.k, scenario.context) * 4
    sampled = min(SAMPLE, scenario.context)
    stages = {
        "encode": weights
        + vectors
        + batch * heads * (dim * 2 + bits // 8)  # the new keys and their codes
        + query_codes,
        "rank": query_codes + read["score"] + picked,
        "attend": read["attend"] + 2 * vectors,
    }
    stages[LAYER] = sum(stages.values())
    # Of a shared document every row samples the same tokens.
    rows = 1 if scenario.shared else batch
    stages["rank/floor_kernel"] = rows * sampled * scenario.code_bytes
    together = shared_tokens(scenario)
    once = together * scenario.code_bytes
    stages["rank/filter_kernel"] = query_codes + read["score"] - once
    if together:
        # A query is a byte per bit of a code, and a base, whatever its planes.
        stages["rank/shared_kernel"] = once + batch * heads * (bits + 4)
    keys = scenario.tokens * (heads * dim * 2 + 4)
    stages[EXACT] = keys + stages["attend"]
    dense = (DENSE_LAYER, *DENSE_STAGES)
    return stages | dict.fromkeys(dense, scenario.dense_bytes + 2 * vectors)


def shared_tokens(scenario: Scenario) -> int:
    """Tokens that `shared_kernel` scores for all users: whole units, which enough of them share."""
    # PyTorch is imported with it: not before a command needs it.
    from hata_kernels.rows import RowGroups

    if scenario.batch < RowGroups.LEAST:
        return 0
    return scenario.shared // RowGroups.UNIT * RowGroups.UNIT


def key_of(scenario: Scenario, stage: str) -> dict[str, Any]:
    """The columns that tell rows apart; dense rows have no budget, peers no bits."""
    method, k, bits = scenario.method, scenario.k, scenario.bits
    if stage in DENSE_STAGES:
        method, k, bits = DENSE, "", ""
    elif stage == EXACT:
        method, bits = EXACT, ""
    size = (scenario.shape.name, scenario.batch, scenario.context, scenario.shared)
    values = (*size, k, method, bits, stage)
    return dict(zip(KEYS, values, strict=True))


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
    shape = scenario.shape
    row = dict.fromkeys(COLUMNS, "")
    row |= {"q_heads": shape.q_heads, "kv_heads": shape.kv_heads, "dim": shape.dim}
    row |= key_of(scenario, stage) | package_versions()
    row |= {"note": note, "copy_gb_per_s": round(copy / 1e3, 1)}
    size = stage_bytes(scenario).get(stage)
    row["bytes"] = "" if size is None else size
    if timing is None:
        return row
    row |= {name: round(getattr(timing, name[:3]), 2) for name in ("p20_us", "p50_us", "p80_us")}
    if size is not None and timing.p50 > 0:
        row["gb_per_s"] = round(size / timing.p50 / 1e3, 1)
        row["share_of_copy"] = round(size / timing.p50 / copy, 4)
    if dense_us is not None and stage in (LAYER, EXACT):
        row["speedup"] = round(dense_us / timing.p50, 3)
    return row
