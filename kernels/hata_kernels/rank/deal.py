"""Which tiles of which request a program of the filter scores."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tiles_to_score(
    row,
    rows,
    seq_lens_ptr,
    budgets_ptr,
    shared_ptr,
    k_max,
    TILE: tl.constexpr,
    SHARED: tl.constexpr,
):
    """Length of a request, its first tile that is to be scored, and how many there are from it on.

    A row that is kept whole needs no scores; the tiles that rows share `shared_kernel` had before.
    """
    real = row < rows
    length = tl.load(seq_lens_ptr + row, mask=real, other=0).to(tl.int32)
    budget = tl.minimum(tl.load(budgets_ptr + row, mask=real, other=0), k_max)
    begin = tl.load(shared_ptr + row, mask=real, other=0) // TILE if SHARED else 0 * length
    tiles = tl.where(length <= budget, 0, tl.cdiv(length, TILE) - begin)
    return length, begin, tiles


@triton.jit
def deal_tiles(
    rows,
    seq_lens_ptr,
    budgets_ptr,
    shared_ptr,
    k_max,
    TILE: tl.constexpr,
    SHARED: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Find the request of this program, of ``rows``, and its tiles.

    A request has programs by how many tiles it has, so that all programs have about as many: a
    short one few, and none one that is kept whole, as those are with which a CUDA graph's batch is
    filled up. For that there have to be ``rows`` more programs than are wanted.

    Returns
    -------
    batch : int64
    length : int32
        0 of a program without work; ``batch`` then is none.
    begin, end, step : int32
        The program's tiles are ``range(begin, end, step)``.
    """
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    row = tl.arange(0, ROWS)
    length, begin, tiles = tiles_to_score(
        row, rows, seq_lens_ptr, budgets_ptr, shared_ptr, k_max, TILE, SHARED
    )
    run = tl.maximum(tl.cdiv(tl.sum(tiles, axis=0), programs - rows), 1)
    # Rounded up: of every row one more than it needs, at most.
    dealt = tl.cdiv(tiles, run)
    ends = tl.cumsum(dealt, axis=0)
    batch = tl.sum((ends <= program).to(tl.int32), axis=0)
    own = row == batch
    step = tl.sum(tl.where(own, dealt, 0), axis=0)
    before = tl.sum(tl.where(row < batch, dealt, 0), axis=0)
    length = tl.sum(tl.where(own, length, 0), axis=0)
    begin = tl.sum(tl.where(own, begin, 0), axis=0)
    end = begin + tl.sum(tl.where(own, tiles, 0), axis=0)
    return batch.to(tl.int64), length, begin + program - before, end, tl.maximum(step, 1)
