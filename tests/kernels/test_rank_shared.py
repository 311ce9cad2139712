"""Ranking of rows that share slots: tiles scored once for all, bit for bit as one by one."""

from __future__ import annotations

import pytest
import torch

import hata_kernels.rank.buffers as sizes_of
import hata_kernels.rank.floor as sampling
import hata_kernels.rank.shared as sharing
import rank_cases as cases
from hata_kernels.rank import RankBuffers, RankSizes, rank, shared_values
from hata_kernels.rows import RowGroups
from rank_cases import rank_triton
from shared_cases import Call, make_groups, share

TILE = 128  # of 8 KV heads and codes of 4 words
BYTES = tuple(2**plane for plane in range(8))


@pytest.fixture(autouse=True)
def small(monkeypatch) -> None:
    """A sample and short contexts of a few hundred tokens, and few programs."""
    monkeypatch.setattr(sampling, "SAMPLE", 128)
    monkeypatch.setattr(sampling, "UNSAMPLED", 300)
    monkeypatch.setattr(sharing, "WARPS", 16)


@pytest.fixture
def small_tiles(monkeypatch) -> None:
    """Tiles of 64 tokens for two KV heads, which would have more."""
    monkeypatch.setattr(sizes_of, "THREAD_WORDS", 1)
    assert RankSizes.of(2, 2, 9, 9, 9).tile == 64


# KV heads, words, weights, scale bits, unit, words of a thread
KINDS = [
    pytest.param(8, 4, (1,) * 4, 0, 128, 32, id="hata"),
    pytest.param(8, 4, (1, 2, 4, 8), 8, 128, 32, id="scales8"),
    pytest.param(2, 3, (3, 1), 16, 512, 32, id="three-words-scales16"),
    pytest.param(4, 8, (1, 2, 4, 8), 16, 128, 32, id="wide-products"),
    pytest.param(3, 1, (1,), 0, 256, 32, id="one-word-three-heads"),
    pytest.param(1, 4, (1, 2, 4, 8), 0, 1024, 32, id="one-head"),
    pytest.param(1, 2, (64, 63), 0, 1024, 32, id="weights-of-127"),
    pytest.param(8, 2, (1, 2), 0, 64, 4, id="tiles-of-32"),
    pytest.param(8, 1, (1, 2), 0, 32, 1, id="tiles-of-16"),
    pytest.param(2, 2, (1, 2), 0, 320, 1, id="units-of-five-tiles"),
]


@pytest.mark.parametrize(("kv_heads", "words", "weights", "scales", "unit", "held"), KINDS)
def test_kinds_of_codes(device, monkeypatch, kv_heads, words, weights, scales, unit, held) -> None:
    monkeypatch.setattr(sizes_of, "THREAD_WORDS", held)
    tokens = 2 * unit if unit < 300 else unit
    lengths = [tokens + 7, tokens + 30, tokens + 1, tokens + 20]
    slots = share(lengths, "aaaa", [10**6] * 4, 2 * max(lengths))
    groups = make_groups(slots, lengths, device, unit)
    assert groups.shared[:4].tolist() == [tokens] * 4
    assert unit % RankSizes.of(kv_heads, words, 99, 9, 9).tile == 0
    Call(slots, lengths, kv_heads, words, weights, scales).check(device, groups)


@pytest.mark.parametrize("rows", [4, 32, 65])
def test_groups_of_all_sizes(device, small_tiles, rows) -> None:
    lengths = [150 + row for row in range(rows)]
    slots = share(lengths, "a" * rows, [140] * rows, 500)
    groups = make_groups(slots, lengths, device, 64)
    assert groups.sizes[0] == rows
    assert groups.extents[0] == 128
    Call(slots, lengths, 2, 2, (1, 2)).check(device, groups)


# lengths, documents, shared tokens, members of the groups
MIXED = [
    pytest.param(
        [400, 410, 300, 420, 380], "aaaaa", [390, 256, 290, 300, 370], [5], id="other-ends"
    ),
    pytest.param([700, 710, 150, 720, 730, 40], "aaaaaa", [650] * 6, [5], id="much-shorter"),
    pytest.param([300] * 11, "abcabababab", [280] * 11, [5, 5], id="several"),
    pytest.param([300] * 6, "abcdef", [280] * 6, [], id="none"),
    pytest.param([300, 1, 1, 1, 300, 300, 300], "abbbaaa", [290] * 7, [4], id="padding"),
    pytest.param([1] * 5, "aaaaa", [1] * 5, [], id="only-padding"),
]  # fmt: skip


@pytest.mark.parametrize(("lengths", "documents", "shared", "members"), MIXED)
@pytest.mark.parametrize("programs", [1, 5])
def test_rows_of_a_step(
    device, monkeypatch, small_tiles, lengths, documents, shared, members, programs
) -> None:
    monkeypatch.setattr(sharing, "WARPS", 4 * programs)  # of two warps and each of two heads
    slots = share(lengths, documents, shared, 1000)
    groups = make_groups(slots, lengths, device, 64)
    assert [size for size in groups.sizes[: len(lengths)].tolist() if size] == members
    Call(slots, lengths, 2, 2, (1, 2)).check(device, groups)


@pytest.mark.parametrize("ends", [(0, 0), (90, 0), (0, 90), (200, 200), (1000, 1000)], ids=str)
def test_sinks_and_recent_tokens_in_shared_tiles(device, small_tiles, ends) -> None:
    lengths = [385, 384, 500, 460, 390]
    slots = share(lengths, "aaaaa", [384] * 5, 1000)
    call = Call(slots, lengths, 2, 2)
    call.options |= dict(zip(("sink", "recent"), ends, strict=True))
    call.check(device, make_groups(slots, lengths, device, TILE))


@pytest.mark.parametrize("kept", [[0], [0, 2, 4], [0, 1, 2, 3, 4]], ids=str)
def test_rows_that_are_kept_whole(device, small_tiles, kept) -> None:
    lengths = [300] * 5
    slots = share(lengths, "aaaaa", [290] * 5, 1000)
    call = Call(slots, lengths, 2, 2)
    call.arguments[4][kept] = 300
    call.options["k_max"] = int(call.arguments[4].max())
    call.check(device, make_groups(slots, lengths, device, TILE))


@pytest.mark.parametrize("room", [63, 150])
@pytest.mark.parametrize("deviations", [-50.0, 4.5, 50.0])
def test_lists_that_do_not_serve(device, monkeypatch, small_tiles, room, deviations) -> None:
    monkeypatch.setattr(sampling, "DEVIATIONS", deviations)
    cases.set_room(monkeypatch, room)
    lengths = [520, 500, 540, 510, 530]
    slots = share(lengths, "aaaaa", [500] * 5, 1000)
    groups = make_groups(slots, lengths, device, TILE)
    Call(slots, lengths, 2, 2, (1,)).check(device, groups)


def test_equal_scores_keep_the_first(device, small_tiles) -> None:
    lengths = [520, 500, 540, 510, 530]
    slots = share(lengths, "aaaaa", [500] * 5, 1000)
    call = Call(slots, lengths, 2, 1, (1, 2))
    call.arguments[0][:], call.arguments[1][:] = 5, -1
    call.check(device, make_groups(slots, lengths, device, TILE))


def test_every_token_is_scored_once(device, small_tiles) -> None:
    """No token is listed twice, or not at all."""
    lengths = [520, 500, 540, 510, 530]
    slots = share(lengths, "aaaaa", [500] * 5, 1000)
    groups = make_groups(slots, lengths, device, TILE)
    call = Call(slots, lengths, 2, 2)
    call.arguments[4][:] = 150  # more than a quarter of the context: all tokens are listed
    call.options["k_max"] = 150
    found = cases.found_of(call.check(device, groups).found, 5, 2, shared_values(2, 2, (1,)))
    assert found.tolist() == [[length] * 2 for length in lengths]
    groups.shared.zero_()
    groups.extents.zero_()
    call.check(device, groups)


@pytest.mark.parametrize(
    ("kv_heads", "words", "weights"), [(2, 1, BYTES), (16, 1, (1,)), (2, 16, (1,))], ids=str
)
def test_codes_that_the_filter_alone_scores(device, small_tiles, kv_heads, words, weights) -> None:
    assert shared_values(kv_heads, words, weights) == 0
    lengths = [140] * 4
    slots = share(lengths, "aaaa", [130] * 4, 300)
    groups = make_groups(slots, lengths, device, 128)
    assert groups.sizes[0] == 4
    Call(slots, lengths, kv_heads, words, weights).check(device, groups)


def test_buffers_serve_calls_with_and_without_groups(device, small_tiles) -> None:
    lengths = [300] * 5
    slots = share(lengths, "aaaaa", [290] * 5, 1000)
    groups = make_groups(slots, lengths, device, TILE)
    call = Call(slots, lengths, 2, 2)
    buffers = call.buffers(device)
    for of in (groups, None, groups):
        call.check(device, of, buffers)


def test_what_does_not_fit_is_named() -> None:
    lengths = [300] * 5
    slots = share(lengths, "aaaaa", [290] * 5, 1000)
    call, cpu = Call(slots, lengths, 8, 4), torch.device("cpu")

    def launch(groups, buffers=None):
        rank_triton(*call.arguments, **call.options, groups=groups, buffers=buffers)

    with pytest.raises(ValueError, match=r"groups\.unit: expected a multiple of 128 tokens"):
        launch(RowGroups(5, 300, cpu, unit=64))
    with pytest.raises(ValueError, match=r"groups\.rows: expected at least 5, found 4"):
        launch(RowGroups(4, 300, cpu))
    with pytest.raises(ValueError, match=r"groups\.device: expected cpu, found meta"):
        launch(RowGroups(5, 300, torch.device("meta")))
    without = RankBuffers(40, RankSizes.of(8, 4, 1922, 305, 25), cpu)
    with pytest.raises(ValueError, match=r"buffers\.sizes: expected those of RankSizes\(tile"):
        launch(RowGroups(5, 300, cpu), without)


@pytest.mark.parametrize("words", [1, 3, 8])
def test_values_of_a_row(words) -> None:
    values = shared_values(8, words, (1, 2))
    assert values == {1: 32, 3: 128, 8: 256}[words]


@pytest.mark.gpu
@pytest.mark.parametrize("weights", [(1, 2, 4, 8), (1,) * 4], ids=str)
@pytest.mark.parametrize(("users", "tokens", "kv_heads"), [(32, 20000, 8), (40, 9000, 4)], ids=str)
def test_many_users_of_a_long_document(monkeypatch, users, tokens, kv_heads, weights) -> None:
    monkeypatch.undo()  # what a server runs
    device = torch.device("cuda")
    lengths = [tokens + 37 * row for row in range(users)]
    slots = share(lengths, "a" * users, [tokens - 5 * row for row in range(users)], 2 * tokens)
    groups = make_groups(slots, lengths, device, RowGroups.UNIT)
    call = Call(slots, lengths, kv_heads, 4, weights)
    call.arguments[4].fill_(312)
    call.options |= {"k_max": 512, "sink": 16, "recent": 64}
    for _ in range(3):
        call.check(device, groups)


@pytest.mark.gpu
def test_a_graph_replays_with_other_groups() -> None:
    device, lengths = torch.device("cuda"), [3000] * 6
    slots = share(lengths, "aaaaaa", [2900] * 6, 9000)
    groups = make_groups(slots, lengths, device, TILE)
    call = Call(slots, lengths)
    moved = [argument.to(device) for argument in call.arguments]
    buffers = call.buffers(device)
    rank_triton(*moved, **call.options, buffers=buffers, groups=groups)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = rank_triton(*moved, **call.options, buffers=buffers, groups=groups)
    for lengths in ([3000] * 6, [2500, 2999, 700, 2700, 1, 2600], [1] * 6):
        other = make_groups(slots, lengths, device, TILE)
        for name in ("shared", "members", "sizes", "extents"):
            getattr(groups, name).copy_(getattr(other, name))
        call.arguments[3] = torch.tensor(lengths)
        moved[3].copy_(call.arguments[3])
        graph.replay()
        assert torch.equal(out.cpu(), rank(*call.arguments, **call.options))
