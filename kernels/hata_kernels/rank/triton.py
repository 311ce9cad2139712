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
from typing import NamedTuple

import torch

from ..bits import power_of_2
from ..chain import chain_options, most_cache
from ..checks import expect
from ..score.scoring import Scoring
from . import filter as filtering
from . import floor as sampling
from . import shared as sharing
from . import take as taking
from .buffers import (
    FILTER_WARPS,
    RankBuffers,
    RankSizes,
    Tiling,
    filter_shape,
    found_steps,
    shared_values,
)


class Inputs(NamedTuple):
    """What kernels read of the arguments of `rank`: tensors, which in a kernel are pointers.

    Triton takes a named tuple as one argument for each of its fields, and none for a None.
    """

    q_codes: torch.Tensor | None
    codes: torch.Tensor
    scales: torch.Tensor | None
    bias: torch.Tensor | None
    token_slots: torch.Tensor
    seq_lens: torch.Tensor
    budgets: torch.Tensor


class Scalars(NamedTuple):
    """Numbers that kernels take: strides, sizes of the buffers, and counts of the call.

    A stride of `RowGroups.members` and the number of requests are `shared_kernel`'s alone.
    """

    token_slots_stride: int
    members_stride: int | None
    tiles: int
    room: int
    sink: int
    recent: int
    k_max: int
    found_request: int  # `found_steps`
    found_head: int
    batch: int | None = None


def rank_triton(
    q_codes, codes, plane_weights, scales, scale_bits, bias,
    token_slots, seq_lens, budgets, sink, recent, out, buffers, groups,
) -> None:  # fmt: skip
    """`rank` on a GPU, of checked arguments: three launches, or four.

    Raises
    ------
    ValueError
        When buffers or groups do not fit; lengths and budgets are trusted.
    """
    (batch, kv_heads, k_max), width, words = out.shape, token_slots.shape[1], codes.shape[2]
    rows = batch * kv_heads
    if rows == 0:
        return
    scoring = Scoring.of(codes, plane_weights, scale_bits, bias is not None)
    values = shared_values(kv_heads, words, scoring.weights) if groups is not None else 0
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
    tiling = Tiling.of(rows, scoring, values)
    options = {"SCORING": scoring, **chain_options(codes.device)}
    found_request, found_head = found_steps(batch, kv_heads, values)
    inputs = Inputs(q_codes, codes, scales, bias, token_slots, seq_lens, budgets)
    scalars = Scalars(
        token_slots_stride=token_slots.stride(0),
        members_stride=None,
        tiles=made.tiles,
        room=made.room,
        sink=sink,
        recent=recent,
        k_max=k_max,
        found_request=found_request,
        found_head=found_head,
    )
    sample = sampling.sample_size(k_max, scoring.levels, taking.IN_REGISTERS[-1])
    sampled = sampling.floor_kernel[(rows,)](
        inputs,
        buffers.scratch("floors", "found", "counts", "bit_scores", "bases"),
        scalars,
        **options,
        TILING=tiling,
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
            inputs._replace(q_codes=None),
            buffers.scratch("floors", "found", "entries", "tiles", "bit_scores", "bases"),
            sharing.Groups(groups.shared, groups.members, groups.sizes, groups.extents),
            scalars._replace(members_stride=groups.members.stride(0), batch=batch),
            **options,
            TILE=tile,
            SPAN=math.gcd(sharing.SPAN, groups.unit // tile),
            ROWS=power_of_2(batch),
            MEMBERS=members,
            WARPS=warps,
            STAGES=sharing.STAGES,
            num_warps=warps,
            maxnreg=sharing.REGISTERS,
        )
    registers, programs = filtering.filter_limits(words, tiling.sections)
    programs = min(sizes.tiles, max(1, programs // batch))
    filtered = filtering.filter_kernel[(programs, batch)](
        inputs,
        buffers.scratch("floors", "found", "entries", "counts", "tiles"),
        groups.shared if values else None,
        scalars,
        **options,
        TILING=tiling,
        SHARED=values > 0,
        RUN=run,
        LANES=lanes,
        num_warps=FILTER_WARPS,
        maxnreg=registers,
    )
    taken = taking.take_kernel[(rows, tiling.sections)](
        inputs,
        buffers.scratch("floors", "found", "entries", "counts", "tiles", "before", "shift"),
        out,
        scalars,
        **options,
        TILING=tiling,
        SELECTION=taking.Selection.of(tiling, sizes.tiles, k_max, made.field),
        num_warps=taking.WARPS,
    )
    for kernel in (sampled, filtered, taken):
        most_cache(kernel)
