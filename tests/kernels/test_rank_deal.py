"""Which programs of the filter score which tiles of which request."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from hata_kernels.rank.deal import deal_tiles

TILE, K_MAX = 64, 300


# Made a kernel by `deal`: only then is it known whether it is interpreted.
def _note_kernel(
    out_ptr,
    rows,
    lengths_ptr,
    budgets_ptr,
    shared_ptr,
    k_max,
    TILE: tl.constexpr,
    SHARED: tl.constexpr,
    ROWS: tl.constexpr,
):
    batch, length, begin, end, step = deal_tiles(
        rows, lengths_ptr, budgets_ptr, shared_ptr, k_max, TILE, SHARED, ROWS
    )
    place = out_ptr + tl.program_id(0) * 5
    tl.store(place, batch.to(tl.int32))
    tl.store(place + 1, length)
    tl.store(place + 2, begin)
    tl.store(place + 3, end)
    tl.store(place + 4, step)


def deal(device, lengths, budgets, shared, wanted) -> list[list[int]]:
    """What ``wanted`` programs, and one more of every request, find out."""
    rows = len(lengths)
    out = torch.full((wanted + rows, 5), -7, dtype=torch.int32, device=device)
    # Beyond the rows there is what must not be read as one.
    beyond = [10**6] * 40

    def moved(numbers, dtype):
        return torch.tensor(numbers + beyond, dtype=dtype, device=device)

    vectors = (moved(lengths, torch.int64), moved(budgets, torch.int32))
    third = None if shared is None else moved(shared, torch.int32)
    triton.jit(_note_kernel)[(wanted + rows,)](
        *(out, rows, *vectors, third, K_MAX),
        TILE=TILE,
        SHARED=shared is not None,
        ROWS=max(32, triton.next_power_of_2(rows)),
    )
    return out.tolist()


def check(device, lengths, budgets, shared, wanted) -> None:
    """Every tile is one program's, none has more than its part, and the rest have none."""
    first = [0 if shared is None else n // TILE for n in shared or lengths]
    expected = {
        (row, tile)
        for row, length in enumerate(lengths)
        if length > min(budgets[row], K_MAX)
        for tile in range(first[row], -(-length // TILE))
    }
    most = max(1, -(-len(expected) // wanted))
    dealt = []
    for batch, length, begin, end, step in deal(device, lengths, budgets, shared, wanted):
        tiles = [(batch, tile) for tile in range(begin, end, step)]
        assert len(tiles) <= most
        assert length == (lengths[batch] if batch < len(lengths) else 0)
        dealt += tiles
    assert len(dealt) == len(set(dealt))
    assert set(dealt) == expected


@pytest.mark.parametrize("wanted", [1, 7, 150])
@pytest.mark.parametrize("rows", [1, 5, 33, 70])
def test_random_rows(device, seed, rows, wanted) -> None:
    generator = torch.Generator().manual_seed(seed)

    def random(most):
        return torch.randint(1, most, (rows,), generator=generator).tolist()

    lengths, budgets = random(5000), random(2 * K_MAX)
    check(device, lengths, budgets, None, wanted)
    shared = [min(pair) // TILE * TILE for pair in zip(random(3000), lengths, strict=True)]
    check(device, lengths, budgets, shared, wanted)


def test_rows_that_fill_up_a_batch_have_no_programs(device) -> None:
    """Two of eight: the others have as many programs each as if there were six."""
    lengths, budgets = [6400] * 6 + [1] * 2, [100] * 8
    check(device, lengths, budgets, None, 120)
    found = deal(device, lengths, budgets, None, 120)
    assert [sum(of[0] == row for of in found) for row in range(8)] == [20] * 6 + [0] * 2


def test_no_tiles_at_all(device) -> None:
    lengths = [50, 1, 300]
    check(device, lengths, [50, 1, 400], None, 6)
    check(device, [640, 704], [10, 10], [640, 704], 4)
