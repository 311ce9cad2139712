"""Triton ranking: sample a floor, score and filter, take the best; scores never reach memory.

Nearly all tokens of a long context score below the threshold of the top k. A sample of the context
gives a floor that is below it with near certainty, so that the launch which scores all tokens
writes a few percent of them, and the launch which finds the threshold and compacts reads only
these. The result is exact and the same in every run, whatever the sample says: where fewer tokens
than the budget reach the floor, or more than their list has room for, the last launch scores that
row's tokens again.

No launch depends on ``seq_lens``: safe inside a CUDA graph.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..bits import power_of_2
from ..chain import chain_options, most_cache
from ..checks import expect
from ..rows.groups import RowGroups
from ..score.scoring import Scoring
from . import buffers as sizing
from . import filter as filtering
from . import floor as sampling
from . import sections as sectioning
from . import shared as sharing
from . import take as taking
from .buffers import FILTER_WARPS, RankBuffers, RankSizes, filter_shape, shared_values
from .naive import check_rank


def rank_triton(
    q_codes: torch.Tensor,
    codes: torch.Tensor,
    token_slots: torch.Tensor,
    seq_lens: torch.Tensor,
    budgets: torch.Tensor,
    *,
    plane_weights: Sequence[int],
    sink: int,
    recent: int,
    k_max: int,
    out: torch.Tensor | None = None,
    scales: torch.Tensor | None = None,
    scale_bits: int = 0,
    buffers: RankBuffers | None = None,
    groups: RowGroups | None = None,
) -> torch.Tensor:
    """Rank on the GPU; same contract and result as `rank_naive`.

    Kernels of a GPU of compute capability 9.0 and up read lengths, budgets, slots, groups and the
    codes of tokens before the last ``recent`` while the launch before still runs: it must not write
    them, nor the one before `Encoder.encode_step`, which alone may write codes directly before.

    Parameters
    ----------
    q_codes, codes, token_slots, seq_lens, budgets
    plane_weights, sink, recent, k_max, out, scales, scale_bits
        As in `rank_naive`.
    buffers : RankBuffers, optional
        Allocated when None.
    groups : RowGroups, optional
        Of these very rows, slots and lengths: the tiles that they share are scored once for all,
        unless `shared_values` or a list that is shorter than a tile say otherwise.

    Raises
    ------
    ValueError
        As `rank_naive`, and when buffers or groups do not fit; lengths and budgets are trusted.
    """
    counts = (plane_weights, sink, recent, k_max)
    out = check_rank(
        q_codes, codes, token_slots, seq_lens, budgets, *counts, out, scales, scale_bits
    )
    batch, width = token_slots.shape
    kv_heads, words = codes.shape[1:]
    rows = batch * kv_heads
    if rows == 0:
        return out
    scoring = Scoring.of(codes, plane_weights, scale_bits)
    values = shared_values(kv_heads, words, plane_weights) if groups is not None else 0
    sizes = RankSizes.of(kv_heads, words, scoring.levels, width, k_max, values)
    if buffers is None:
        buffers = RankBuffers(rows, sizes, codes.device)
    buffers.check(rows, sizes, codes.device)
    made = buffers.sizes
    if made.room < sizes.tile:
        values = 0
    if values:
        groups.check(batch, 1, codes.device)
        unit, tile = groups.unit, sizes.tile
        expect(unit % tile == 0, "groups.unit", f"a multiple of {tile} tokens", unit)
    sections = sizing.sections_of(rows, words, scoring.levels, values)
    common = {"SCORING": scoring, **chain_options(codes.device)}
    counted = {"SECTIONS": sections, "BINS": sizing.BINS}
    inputs = (q_codes, codes, scales, token_slots, seq_lens, budgets)
    found_steps = sizing.found_steps(batch, kv_heads, values)
    scalars = (token_slots.stride(0), made.tiles, made.room, sink, recent, k_max, *found_steps)
    floor = (buffers.floors, buffers.found)
    sample = sampling.sample_size(k_max, scoring.levels, taking.HELD[-1])
    sampled = sampling.floor_kernel[(rows,)](
        *inputs,
        *floor,
        buffers.counts,
        buffers.values,
        buffers.bases,
        *scalars,
        **common,
        **counted,
        VALUES=values,
        SAMPLE=sample,
        LANES=min(sample, 32 * sampling.WARPS),
        UNSAMPLED=sampling.UNSAMPLED,
        DEVIATIONS=sampling.DEVIATIONS,
        num_warps=sampling.WARPS,
    )
    lanes, run, tile = filter_shape(kv_heads, words)
    if values:
        members, warps = sharing.shared_shape(tile)
        # Without `most_cache`: several programs of an SM need more shared memory than it leaves.
        sharing.shared_kernel[(max(1, sharing.WARPS // warps // kv_heads), kv_heads)](
            *inputs[1:],
            *floor,
            buffers.entries,
            buffers.tiles,
            buffers.values,
            buffers.bases,
            groups.shared,
            groups.members,
            groups.sizes,
            groups.extents,
            token_slots.stride(0),
            groups.members.stride(0),
            *scalars[1:],
            batch,
            **common,
            TILE=tile,
            SPAN=math.gcd(sharing.SPAN, groups.unit // tile),
            ROWS=power_of_2(batch),
            MEMBERS=members,
            WARPS=warps,
            STAGES=sharing.STAGES,
            num_warps=warps,
            maxnreg=sharing.REGISTERS,
        )
    registers, programs = filtering.filter_limits(words, sections)
    programs = min(sizes.tiles, max(1, programs // batch))
    filtered = filtering.filter_kernel[(programs, batch)](
        *inputs,
        *floor,
        buffers.entries,
        buffers.counts,
        buffers.tiles,
        groups.shared if values else None,
        *scalars,
        **common,
        **counted,
        LEAST=sectioning.LEAST,
        SHARED=values > 0,
        TILE=tile,
        RUN=run,
        LANES=lanes,
        num_warps=FILTER_WARPS,
        maxnreg=registers,
    )
    held = taking.HELD if sections == 1 else taking.HELD_OF_SECTION
    section = sectioning.most_tiles(sizes.tiles, tile, sections)
    taken = taking.take_kernel[(rows, sections)](
        *inputs,
        *floor,
        buffers.entries,
        buffers.counts,
        buffers.tiles,
        buffers.before,
        buffers.shift,
        out,
        *scalars,
        **common,
        SECTIONS=sections,
        LEAST=sectioning.LEAST,
        COUNTED=sizing.BINS,
        BINS=taking.BINS,
        TILE=tile,
        TILES=min(taking.TILES, power_of_2(section)),
        HELD=held,
        SIZES=len(held),
        CHUNK=taking.chunk(k_max),
        BLOCK=taking.BLOCK,
        LANES=32 * taking.WARPS,
        FIELD=made.field,
        num_warps=taking.WARPS,
    )
    for kernel in (sampled, filtered, taken):
        most_cache(kernel)
    return out
