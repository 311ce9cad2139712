"""Lists of the ranking: of every length, with too few or too many candidates, in sections."""

from __future__ import annotations

import pytest
import torch

import hata_kernels.rank.buffers as sizes_of
import hata_kernels.rank.floor as sampling
import hata_kernels.rank.take as taking
import rank_cases as cases

# Fixtures, which pytest looks for in each module.
small, lists = cases.small, cases.lists
pytestmark = pytest.mark.usefixtures("lists")

BYTES = tuple(2**plane for plane in range(8))


@pytest.mark.parametrize(("code", "scale_bits"), [(0, 0), (-1, 0), (0, 8), (-1, 16)], ids=str)
def test_equal_scores_overflow_their_list_and_keep_the_first(
    device, monkeypatch, poison, make_token_slots, small, code, scale_bits
) -> None:
    cases.set_room(monkeypatch, 400)
    lengths = [700, 401, 400, 30]
    shape = (lengths, 2, 1, (1, 2), scale_bits)
    (q_codes, codes, *rest), options = cases.make_inputs(make_token_slots, *shape)
    q_codes[:], codes[:] = 0, code
    if scale_bits:
        options["scales"][:] = 77
    inputs, budgets = (q_codes, codes, *rest), [9, 10, 8, 7]
    buffers = cases.make_buffers(inputs, options, device, 10)
    for sink, recent in ((0, 0), (3, 4)):
        ends = {"sink": sink, "recent": recent, "k_max": 10}
        cases.check(device, poison, inputs, options, budgets, **ends, buffers=buffers)
        found = cases.found_in(buffers, inputs, options).sum(0)[:3]
        assert found.tolist() == [[length] * 2 for length in lengths[:3]]


def test_a_list_overflows_the_room_that_it_usually_has(device, poison, make_token_slots) -> None:
    (q_codes, codes, *rest), options = cases.make_inputs(make_token_slots, [4200], 1, 1, (1,), 0)
    codes[:] = q_codes[0, 0]
    inputs = (q_codes, codes, *rest)
    buffers = cases.make_buffers(inputs, options, device, 10)
    assert buffers.sizes.room == 4136
    cases.check(device, poison, inputs, options, [9], sink=1, recent=2, k_max=10, buffers=buffers)
    assert cases.found_in(buffers, inputs, options).sum() == 4200


# deviations, room of a row's list and of a section's, length of the third row: of one of 290 all
# tokens are listed
MISLED = [
    pytest.param(-50.0, None, 513, id="too-few"),
    pytest.param(-50.0, None, 290, id="some-too-few"),
    pytest.param(4.5, (60, 30), 513, id="too-many"),
    pytest.param(4.5, (250, 250), 290, id="some-too-many"),
    pytest.param(50.0, (40, 40), 513, id="all-of-them"),
]


@pytest.mark.parametrize(("deviations", "rooms", "third"), MISLED)
@pytest.mark.parametrize(
    ("kv_heads", "words", "weights", "scale_bits"),
    [
        *[(2, 4, (1, 2, 4, 8), 0), (3, 3, (1,) * 3, 0), (2, 2, (3, 1), 8), (1, 8, BYTES, 16)],
        (2, 8, (1, 2, 4, 8), 0),
    ],
    ids=str,
)
def test_rows_that_a_sample_misled_are_scored_again(
    device, monkeypatch, poison, make_token_slots, small,
    deviations, rooms, third, kv_heads, words, weights, scale_bits,
) -> None:  # fmt: skip
    monkeypatch.setattr(sampling, "DEVIATIONS", deviations)
    cases.set_registers(monkeypatch, (64,))
    lengths, budgets = [700, 512, third, 20], [45, 45, 44, 44]
    shape = (lengths, kv_heads, words, weights, scale_bits)
    inputs, options = cases.make_inputs(make_token_slots, *shape)
    if rooms:
        cases.set_room(monkeypatch, rooms[cases.sections(inputs, options) > 1])
    buffers = cases.make_buffers(inputs, options, device, 45)
    ends = {"sink": 3, "recent": 5}
    cases.check(device, poison, inputs, options, budgets, **ends, k_max=45, buffers=buffers)
    found = cases.found_in(buffers, inputs, options)[:, :3]
    again = found.sum(0) < torch.tensor(budgets[:3]).view(3, 1)
    again |= (found > buffers.sizes.room).any(0)
    assert again.any()
    assert again.all() == (third == 513)


def test_more_tiles_than_are_summed_at_a_time(
    device, monkeypatch, poison, make_token_slots, small
) -> None:
    # 1024 at a time elsewhere, which takes the interpreter a minute.
    monkeypatch.setattr(taking, "TILES", 16)
    inputs, options = cases.make_inputs(
        make_token_slots, [1100, 64 * 16, 64 * 16 + 1], 2, 4, (1, 2), 0
    )
    monkeypatch.setattr(sizes_of, "THREAD_WORDS", 4)
    sizes = cases.make_buffers(inputs, options, device, 300).sizes
    assert sizes.tile == 64
    assert sizes.tiles > 16
    cases.check(device, poison, inputs, options, [30, 290, 300], sink=4, recent=4, k_max=300)


@pytest.mark.parametrize(
    ("rows", "width", "k_max"),
    [(0, 0, 60), (50, 0, 60), (0, 5000, 60), (7, 0, 400), (50, 50000, 9000)],
    ids=["same", "rows", "width", "k_max", "field"],
)
def test_buffers_serve_smaller_calls_one_after_the_other(
    device, poison, make_token_slots, small, rows, width, k_max
) -> None:
    shape = (4, 2, (1, 2, 4, 8), 0)
    first, options = cases.make_inputs(make_token_slots, [600, 200, 450], *shape)
    buffers = cases.make_buffers(first, options, device, k_max, rows=rows, width=width)
    assert buffers.sizes.field == (32 if width == 50000 else 16)
    assert buffers.before.dtype == (torch.int64 if width == 50000 else torch.int32)
    second, _ = cases.make_inputs(make_token_slots, [10, 301], *shape)
    third, _ = cases.make_inputs(make_token_slots, [580], *shape)
    for inputs, budgets in (
        (first, [60, 50, 7]),
        (second, [5, 60]),
        (third, [59]),
        (first, [9] * 3),
    ):
        ends = {"sink": 2, "recent": 8, "k_max": 60}
        cases.check(device, poison, inputs, options, budgets, **ends, buffers=buffers)


@pytest.mark.parametrize("room", [500, 2**15 - 1, 2**15, 40000])
def test_prefix_sums_of_both_sizes(
    device, monkeypatch, poison, make_token_slots, small, room
) -> None:
    cases.set_room(monkeypatch, room)
    cases.set_registers(monkeypatch, (64,))
    inputs, options = cases.make_inputs(make_token_slots, [900, 650], 2, 2, (3, 1), 0)
    buffers = cases.make_buffers(inputs, options, device, 150)
    assert buffers.sizes.field == (16 if room < 2**15 else 32)
    cases.check(
        device, poison, inputs, options, [150, 9], sink=0, recent=1, k_max=150, buffers=buffers
    )


def test_lists_of_every_size_that_is_held(device, poison, make_token_slots) -> None:
    lengths, budgets = [2049, 4096, 4097, 8192, 8193], [1025, 2000, 1100, 2049, 2049]
    inputs, options = cases.make_inputs(make_token_slots, lengths, 1, 1, (1, 2), 0)
    buffers = cases.make_buffers(inputs, options, device, 2100)
    ends = {"sink": 2, "recent": 3, "k_max": 2100}
    cases.check(device, poison, inputs, options, budgets, **ends, buffers=buffers)
    # A budget of a quarter: all tokens are listed.
    assert cases.found_in(buffers, inputs, options).sum(0).flatten().tolist() == lengths
