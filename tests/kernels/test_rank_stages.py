"""Every launch of the ranking by itself: what it hands on, bit for bit as PyTorch has it."""

from __future__ import annotations

import pytest
import torch

import hata_kernels.rank.buffers as sizes_of
import hata_kernels.rank.floor as sampling
import hata_kernels.rank.shared as sharing
import hata_kernels.rank.take as taking
import rank_cases as cases
import rank_stages as stages
import shared_cases as sharers
from hata_kernels.score import score_levels

BYTES = tuple(2**plane for plane in range(8))

# lengths, KV heads, words, plane weights, scale bits, budgets, sink, recent, words of a thread
CASES = {
    "equal": ([1301, 20, 700], 1, 4, (1,) * 4, 0, [60, 20, 41], 3, 9, 4),
    "three-words": ([900, 310], 3, 3, (1, 2, 4, 8), 0, [50, 310], 4, 0, 32),
    "unsampled": ([500, 64, 301, 299], 8, 1, (3, 1), 0, [33, 70, 9, 30], 0, 5, 8),
    "bytes": ([1500, 401], 1, 2, BYTES, 0, [101, 401], 16, 64, 1),
    "scales8": ([900, 33, 640], 3, 4, (1, 2, 4, 8), 8, [47, 64, 30], 3, 3, 32),
    "scales16": ([700], 1, 4, BYTES, 16, [60], 0, 0, 8),
    "biased": ([1301, 20, 700], 2, 4, (1, 2, 4, 8), 0, [60, 20, 41], 3, 9, 4),
    "biased-scales16": ([1100, 333], 3, 3, (3, 1), 16, [33, 64], 4, 5, 32),
    "quarter": ([640, 500, 501], 3, 1, (1,), 0, [160, 124, 125], 0, 1, 8),
    "all-forced": ([450, 400], 1, 2, (3, 1), 0, [11, 10], 50, 200, 1),
}  # fmt: skip

# KV heads, words, plane weights, scale bits, tokens of a unit, words of a thread
KINDS = {
    "hata": (8, 4, (1,) * 4, 0, 128, 32),
    "scales8": (2, 2, (1, 2, 4, 8), 8, 64, 1),
    "three-words-scales16": (3, 3, (3, 1), 16, 256, 32),
    "biased": (8, 4, (1, 2, 4, 8), 0, 128, 32),
    "biased-scales8": (2, 2, (1, 2, 4, 8), 8, 64, 1),
    "one-head": (1, 4, (1, 2, 4, 8), 0, 1024, 32),
    "weights-of-127": (1, 1, (64, 63), 0, 256, 1),
}


@pytest.fixture(autouse=True)
def small(monkeypatch) -> None:
    """A sample and short contexts of a few hundred tokens."""
    monkeypatch.setattr(sampling, "SAMPLE", 128)
    monkeypatch.setattr(sampling, "UNSAMPLED", 300)
    monkeypatch.setattr(sizes_of, "SECTIONED_ROWS", 0)


def make_inputs(
    make_token_slots, lengths, kv_heads, words, weights, scale_bits, budgets, sink, recent, more=3
):
    inputs, options = cases.make_inputs(
        make_token_slots, lengths, kv_heads, words, weights, scale_bits
    )
    options |= {"sink": sink, "recent": recent, "k_max": max(budgets) + more}
    return [*inputs, torch.tensor(budgets, dtype=torch.int32)], options


def make_sharers(device, kv_heads, words, weights, scale_bits, unit):
    """Four rows that share tiles, one of them kept whole; one that shares none; and one that shares
    a unit less. Recent tokens are in shared tiles.
    """
    tokens = max(3, -(-320 // unit)) * unit  # more than are not sampled
    lengths = [tokens + 7, tokens + 30, tokens + 1, tokens + 20, tokens + 3, tokens + 40]
    shared = [tokens + 30] * 4 + [0, tokens - 1]
    slots = sharers.share(lengths, "aaaaba", shared, 2 * max(lengths))
    groups = sharers.make_groups(slots, lengths, device, unit)
    assert groups.shared[:6].tolist() == [tokens] * 4 + [0, tokens - unit]
    call = sharers.Call(slots, lengths, kv_heads, words, weights, scale_bits)
    call.arguments[4][1] = lengths[1]
    call.options["k_max"] = lengths[1] + 2
    return call.arguments, call.options, groups


@pytest.fixture(params=CASES)
def alone(request, monkeypatch, make_token_slots):
    """Arguments and options of rows that are ranked one by one."""
    *shape, thread_words = CASES[request.param]
    monkeypatch.setattr(sizes_of, "THREAD_WORDS", thread_words)
    arguments, options = make_inputs(make_token_slots, *shape)
    if request.param.startswith("biased"):
        options = cases.with_bias(arguments, options)
    return arguments, options


@pytest.fixture(params=KINDS)
def together(request, monkeypatch, device):
    """Arguments, options and groups of rows that share tiles."""
    *shape, thread_words = KINDS[request.param]
    monkeypatch.setattr(sizes_of, "THREAD_WORDS", thread_words)
    arguments, options, groups = make_sharers(device, *shape)
    if request.param.startswith("biased"):
        options = cases.with_bias(arguments, options)
    return arguments, options, groups


def rank_rows(device, monkeypatch, arguments, options, groups=None):
    """What the launches hand on, and the rows that they had.

    Of each request, and of the shared tiles of a head, two programs, which the interpreter runs one
    after the other: tiles are not listed in position order.
    """
    heads, words = arguments[1].shape[1:]
    _, warps = sharing.shared_shape(sizes_of.filter_shape(heads, words)[2])
    monkeypatch.setattr(sharing, "WARPS", 2 * warps * heads)
    cases.set_programs(monkeypatch, 2 * arguments[2].shape[0])
    ranked = stages.Ranked(device, arguments, options, groups)
    rows = stages.rows_of(arguments, options)
    if device.type == "cpu":
        pieces = [ranked.pieces(row) for row in rows if not row.whole]
        begins = [[begin for begin, count in of if count] for of in pieces]
        assert any(of != sorted(of) for of in begins) or not any(begins)
    return ranked, rows


def sample_of(ranked) -> int:
    return sampling.sample_size(ranked.out.shape[2], ranked.levels, taking.IN_REGISTERS[-1])


def floor_of(row, ranked) -> int:
    """Of the row, for the constants that the launches have."""
    return stages.floor_of(
        row,
        ranked.score_bits,
        sample=sample_of(ranked),
        unsampled=sampling.UNSAMPLED,
        deviations=sampling.DEVIATIONS,
    )


def check_floors(ranked, rows) -> None:
    for row in rows:
        if not row.whole:
            assert ranked.floors[row.number].item() == floor_of(row, ranked)


def check_lists(ranked, rows) -> None:
    """Lists hold the candidates of every tile, and nothing else is written."""
    sizes = ranked.sizes
    for row in rows:
        handed = ranked.handed(row)
        if row.whole:
            assert all(stages.untouched(tensor) for tensor in handed.values())
            continue
        floor = floor_of(row, ranked)
        expected = stages.list_of(row, floor, sizes.tile, ranked.score_bits)
        found = sum(len(piece) for piece in expected)
        assert found == int((row.scores >= floor).sum()) == int(handed["found"])
        if found > sizes.room:
            continue
        assert ranked.list(row) == expected
        # Pieces fill the list from its beginning, and do not overlap.
        end = 0
        for begin, count in sorted(ranked.pieces(row)):
            assert begin == end or count == 0
            end += count
        assert end == found
        assert stages.untouched(handed["entries"][found:])
        assert stages.untouched(handed["tiles"][len(expected) :])
    # Rows of `found` are not side by side: every other number is as it was.
    found = ranked.tensors["found"]
    assert found.ne(stages.poison(found.dtype)).sum() == sum(not row.whole for row in rows)
    rest = [tensor[ranked.rows :] for name, tensor in ranked.tensors.items() if name != "found"]
    assert all(stages.untouched(tensor) for tensor in rest)


def check_take(ranked, rows) -> int:
    """Slots are those of the lists as they were handed on. Returns how many lists serve."""
    k_max, score_bits = ranked.out.shape[2], ranked.score_bits
    served = [row for row in rows if ranked.serves(row)]
    for row in served:
        expected = stages.take_of(ranked.list(row), row.budget, k_max, score_bits)
        assert ranked.out[row.request, row.head].tolist() == expected
    return len(served)


def test_floors(device, monkeypatch, alone) -> None:
    ranked, rows = rank_rows(device, monkeypatch, *alone)
    check_floors(ranked, rows)
    assert any(floor_of(row, ranked) > 0 for row in rows if not row.whole)


@pytest.mark.parametrize("deviations", [-50.0, -1.5, 50.0])
@pytest.mark.parametrize(("words", "weights"), [(1, (1,)), (2, (3, 1))], ids=str)
def test_floors_of_samples_that_mislead(
    device, monkeypatch, make_token_slots, deviations, words, weights
) -> None:
    monkeypatch.setattr(sampling, "DEVIATIONS", deviations)
    # Scores of an odd number of bits too, of which floors take two at a time.
    shape = ([700, 512, 20], 3, words, weights, 0, [45, 41, 41], 3, 5)
    arguments, options = make_inputs(make_token_slots, *shape)
    ranked, rows = rank_rows(device, monkeypatch, arguments, options)
    check_floors(ranked, rows)
    check_lists(ranked, rows)
    if deviations == -50:
        assert ranked.found[:2].eq(0).all()
    if deviations == 50:
        assert ranked.floors[:6].eq(0).all()


@pytest.mark.parametrize("batch", [1, 31, 32, 33, 70])
def test_atomics_do_not_meet(batch) -> None:
    """What a launch adds to at once is side by side, and what another one adds to is elsewhere."""
    assert sizes_of.found_steps(batch, 8, 0) == (8, 1)
    request, head = sizes_of.found_steps(batch, 8, 64)
    assert request == 1
    assert head >= batch
    assert head * torch.int32.itemsize % 128 == 0  # every head's begin a cache line


def test_sizes_of_samples() -> None:
    """Larger ones where scores are few and lists would be longer than registers hold."""
    most = 8192
    few = score_levels((1,) * 4, 128)
    many = score_levels((1, 2, 4, 8), 64)
    pairs = ((1638, few), (1638, many), (1639, few), (1639, many))
    sizes = [sampling.sample_size(k, levels, most) for k, levels in pairs]
    assert sizes == [n * sampling.SAMPLE for n in (1, 1, 2, 1)]


def test_floors_of_large_samples(device, monkeypatch, make_token_slots) -> None:
    monkeypatch.setattr(taking, "IN_REGISTERS", (64, 128))
    ranked, rows = rank_rows(
        device,
        monkeypatch,
        *make_inputs(make_token_slots, [900, 701, 512, 20], 3, 2, (1,), 0, [45, 41, 41, 41], 3, 5),
    )
    assert sample_of(ranked) == 2 * sampling.SAMPLE
    check_floors(ranked, rows)
    check_lists(ranked, rows)


def test_queries_as_numbers(device, monkeypatch, together) -> None:
    codes = together[0][1]
    ranked, rows = rank_rows(device, monkeypatch, *together)
    for row in rows:
        values, base = ranked.handed(row)["bit_scores"].long(), ranked.bases[row.number]
        if row.whole:
            assert stages.untouched(ranked.handed(row)["bit_scores"])
            assert stages.untouched(base)
            continue
        bits = stages.key_bits(codes[row.slots, row.head], ranked.values)
        assert torch.equal(base.long() + bits @ values, row.agreement)
        assert values[32 * codes.shape[2] :].eq(0).all()


def test_lists(device, monkeypatch, alone) -> None:
    check_lists(*rank_rows(device, monkeypatch, *alone))


def test_lists_of_rows_that_share_tiles(device, monkeypatch, together) -> None:
    ranked, rows = rank_rows(device, monkeypatch, *together)
    assert ranked.values > 0
    check_lists(ranked, rows)


@pytest.mark.parametrize("room", [63, 150])
@pytest.mark.parametrize("shared", [False, True], ids=["alone", "shared"])
def test_lists_that_are_over(device, monkeypatch, make_token_slots, shared, room) -> None:
    cases.set_room(monkeypatch, room)
    monkeypatch.setattr(sizes_of, "THREAD_WORDS", 1)
    groups = None
    if shared:  # tiles of 64 tokens: room of 63 leaves them to the filter
        lengths = [520, 500, 540, 510, 530]
        slots = sharers.share(lengths, "aaaaa", [500] * 5, 1000)
        groups = sharers.make_groups(slots, lengths, device, 128)
        call = sharers.Call(slots, lengths, 2, 2, (1,))
        arguments, options = call.arguments, call.options
        arguments[4][:] = torch.tensor([60, 1, 43, 130, 10])
        options["k_max"] = 130
    else:
        shape = ([900, 350, 400, 20], 2, 2, (1, 2), 0, [60, 3, 100, 21], 3, 5)
        arguments, options = make_inputs(make_token_slots, *shape)
    ranked, rows = rank_rows(device, monkeypatch, arguments, options, groups)
    assert (ranked.values > 0) == (shared and room == 150)
    check_lists(ranked, rows)
    assert ranked.found.gt(room).any()
    # And rows whose lists serve, side by side with those.
    assert check_take(ranked, rows) > 0


@pytest.mark.parametrize("lists", [None, (64, 128)], ids="registers-{}".format)
def test_take(device, monkeypatch, alone, lists) -> None:
    if lists:  # of which longer ones are read again and again
        monkeypatch.setattr(taking, "IN_REGISTERS", lists)
        monkeypatch.setattr(taking, "chunk", lambda k_max: 64)
    assert check_take(*rank_rows(device, monkeypatch, *alone)) > 0


def test_take_of_rows_that_share_tiles(device, monkeypatch, together) -> None:
    assert check_take(*rank_rows(device, monkeypatch, *together)) > 0


def sections_of(ranked, row) -> tuple[range, int]:
    """Numbers of a row's lists, and tiles of a section."""
    used = -(-row.length // ranked.sizes.tile)
    tiles = max(-(-used // sizes_of.SECTIONS), sizes_of.SECTION_TOKENS // ranked.sizes.tile)
    first = row.number * sizes_of.SECTIONS
    return range(first, first + sizes_of.SECTIONS), tiles


@pytest.mark.parametrize("least", [1, 200])
def test_lists_of_sections(device, monkeypatch, alone, least) -> None:
    """Candidates are in the list of their section, and are counted there."""
    arguments, options = alone
    monkeypatch.setattr(sizes_of, "SECTIONED_ROWS", 100)
    if cases.sections(arguments, options) == 1:
        pytest.skip("rows have one list")
    monkeypatch.setattr(sizes_of, "SECTION_TOKENS", least)
    cases.set_programs(monkeypatch, 2 * arguments[2].shape[0])
    ranked = stages.Ranked(device, arguments, options)
    rows = stages.rows_of(arguments, options)
    check_floors(ranked, rows)
    found = ranked.tensors["found"].flatten()[: ranked.rows * sizes_of.SECTIONS]
    found = found.view(sizes_of.SECTIONS, ranked.rows)
    for row in rows:
        numbers, tiles = sections_of(ranked, row)
        if row.whole:
            assert stages.untouched(found[:, row.number])
            assert stages.untouched(ranked.entries[numbers])
            assert stages.untouched(ranked.tensors["counts"][numbers])
            continue
        floor = floor_of(row, ranked)
        pieces = stages.list_of(row, floor, ranked.sizes.tile, ranked.score_bits)
        begins = ranked.pieces(row)
        for section, number in enumerate(numbers):
            here = range(section * tiles, min((section + 1) * tiles, len(pieces)))
            expected = [entry for tile in here for entry in pieces[tile]]
            assert found[section, row.number] == len(expected)
            for tile in here:
                begin, count = begins[tile]
                listed = ranked.entries[number, begin : begin + count].tolist()
                assert listed == pieces[tile]
            assert stages.untouched(ranked.entries[number, len(expected) :])
            counts = torch.zeros(sizes_of.BINS, dtype=torch.int32)
            for entry in expected:
                excess = (entry >> (63 - ranked.score_bits)) - floor
                counts[min(excess, sizes_of.BINS - 1)] += 1
            assert torch.equal(ranked.tensors["counts"][number], counts)


def test_equal_scores(device, monkeypatch, make_token_slots) -> None:
    """The first of equal tokens are kept, of pieces that lie in any order."""
    monkeypatch.setattr(sizes_of, "THREAD_WORDS", 4)
    shape = ([700, 401], 2, 4, (1, 2), 0, [50, 41], 3, 4)
    arguments, options = make_inputs(make_token_slots, *shape)
    arguments[0][:], arguments[1][:] = 5, -1
    ranked, rows = rank_rows(device, monkeypatch, arguments, options)
    check_floors(ranked, rows)
    check_lists(ranked, rows)
    assert check_take(ranked, rows) == len(rows)
    assert ranked.found.tolist() == [[700] * 2, [401] * 2]
