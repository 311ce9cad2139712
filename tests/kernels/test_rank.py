"""Ranking: the CPU one against sorting, the Triton one against the CPU one, bit for bit."""

from __future__ import annotations

import pytest
import torch
import triton.language as tl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hata_kernels.rank.floor as sampling
import hata_kernels.rank.score as scoring
import hata_kernels.rank.take as taking
import rank_cases as cases
from hata_kernels.rank import rank
from rank_cases import rank_triton

# Fixtures, which pytest looks for in each module.
small, lists = cases.small, cases.lists
pytestmark = pytest.mark.usefixtures("lists")

BYTES = tuple(2**plane for plane in range(8))

# lengths, KV heads, words, plane weights, scale bits, budgets, sink, recent, more than the budget
# in k_max; with UNSAMPLED at 300 tokens and a SAMPLE of 128
CASES = [
    pytest.param([1], 3, 4, (1,) * 4, 0, [1], 0, 0, 0, id="ctx1"),
    pytest.param([1, 40], 2, 1, (1,), 0, [64, 64], 4, 8, 3, id="shorter-than-budget"),
    pytest.param([64, 65, 63], 1, 2, (1,) * 7, 0, [64] * 3, 2, 0, 0, id="around-the-budget"),
    pytest.param([300, 301, 299], 8, 4, (1, 2, 4, 8), 0, [20] * 3, 16, 64, 1, id="unsampled"),
    pytest.param([1, 700, 12], 2, 3, (3, 1), 0, [5, 40, 12], 0, 4, 0, id="ragged-odd-words"),
    pytest.param([900], 1, 8, BYTES, 0, [33], 4, 4, 5, id="eight-bit-query"),
    pytest.param([450], 32, 1, (1,), 0, [9], 1, 1, 0, id="many-heads-one-word"),
    pytest.param([320, 20], 32, 4, (1, 2, 4, 8), 0, [31, 64], 2, 3, 0, id="many-heads"),
    pytest.param([900, 64], 3, 4, (1,) * 4, 8, [50, 64], 3, 3, 2, id="scales8"),
    pytest.param([700], 2, 8, BYTES, 16, [60], 0, 0, 0, id="scales16-wide-products"),
    pytest.param([700, 610], 1, 2, (1, 2, 4, 8), 16, [7, 100], 5, 0, 1, id="scales16"),
    pytest.param([500], 8, 3, (3, 1), 8, [20], 0, 9, 0, id="scales8-three-words"),
    pytest.param([900, 400], 3, 8, (1, 2, 4, 8), 0, [50, 40], 4, 9, 0, id="eight-words"),
    pytest.param([700, 330], 2, 6, (1, 1, 1), 0, [40, 33], 0, 4, 1, id="six-words"),
    pytest.param([500], 1, 16, (1, 2), 8, [44], 3, 3, 0, id="scales8-sixteen-words"),
    pytest.param([640, 500], 2, 1, (1, 2, 4, 8), 0, [160, 124], 0, 0, 0, id="quarter-of-context"),
    pytest.param([400, 4], 2, 4, (1,) * 7, 0, [10, 3], 50, 200, 0, id="all-forced"),
    pytest.param([800], 3, 2, BYTES, 8, [800], 0, 0, 9, id="whole"),
    pytest.param([801], 3, 2, (1,) * 4, 0, [800], 0, 0, 9, id="all-but-one"),
]


@pytest.mark.parametrize("registers", [None, (64, 128), (64,)], ids="registers-{}".format)
@pytest.mark.parametrize(
    (
        "lengths", "kv_heads", "words", "weights", "scale_bits", "budgets", "sink", "recent",
        "more",
    ),
    CASES,
)  # fmt: skip
def test_triton_equals_naive(
    device, monkeypatch, poison, make_token_slots, small, registers,
    lengths, kv_heads, words, weights, scale_bits, budgets, sink, recent, more,
) -> None:  # fmt: skip
    shape = (lengths, kv_heads, words, weights, scale_bits)
    inputs, options = cases.make_inputs(make_token_slots, *shape)
    ends = {"sink": sink, "recent": recent}
    k_max = max(budgets) + more
    if registers is None:
        cases.check(device, poison, inputs, options, budgets, **ends, k_max=3)
        cases.check(device, poison, inputs, options, budgets, **ends, k_max=k_max)
    else:
        cases.set_registers(monkeypatch, registers)
        buffers = cases.make_buffers(inputs, options, device, k_max)
        cases.check(device, poison, inputs, options, budgets, **ends, k_max=k_max, buffers=buffers)


@pytest.mark.parametrize("weights", [(1,) * 4, (1, 2, 4, 8)], ids=str)
def test_contexts_around_those_that_are_sampled(device, poison, make_token_slots, weights) -> None:
    lengths = [sampling.UNSAMPLED - 1, sampling.UNSAMPLED, sampling.UNSAMPLED + 1, 3000]
    inputs, options = cases.make_inputs(make_token_slots, lengths, 2, 4, weights, 0)
    buffers = cases.make_buffers(inputs, options, device, 64)
    ends = {"sink": 16, "recent": 64}
    cases.check(device, poison, inputs, options, [64] * 4, **ends, k_max=64, buffers=buffers)
    floors = buffers.floors[:8].view(4, 2).cpu()
    found = cases.found_in(buffers, inputs, options).sum(0)
    assert floors[:2].eq(0).all()
    assert floors[2:].gt(0).all()
    assert found[:2].tolist() == [[length] * 2 for length in lengths[:2]]
    # What the sample is for: few tokens are listed. And the budget is among them.
    assert found[2:].lt(1000).all()
    assert found.ge(64).all()


@pytest.mark.parametrize("length_dtype", [torch.int32, torch.int64], ids=str)
def test_lengths_of_both_dtypes(device, poison, make_token_slots, small, length_dtype) -> None:
    inputs, options = cases.make_inputs(make_token_slots, [500, 3], 2, 2, (1, 2), 0)
    inputs = (*inputs[:3], inputs[3].to(length_dtype))
    cases.check(device, poison, inputs, options, [40, 7], sink=2, recent=2, k_max=41)


@pytest.mark.parametrize("ends", [(0, 0), (90, 0), (0, 90), (90, 90), (1000, 1000)], ids=str)
def test_sinks_and_recent_tokens_beyond_the_budget(
    device, poison, make_token_slots, small, ends
) -> None:
    inputs, options = cases.make_inputs(make_token_slots, [700, 30], 2, 2, (1, 2, 4, 8), 0)
    sink, recent = ends
    cases.check(device, poison, inputs, options, [50, 20], sink=sink, recent=recent, k_max=50)


def test_every_budget(device, poison, make_token_slots, small) -> None:
    budgets = [1, 2, 31, 32, 33, 99, 100, 101, 200]
    inputs, options = cases.make_inputs(make_token_slots, [400] * 8 + [100], 1, 1, (1, 2), 0)
    # 34 levels for 400 tokens: the threshold is shared by many.
    cases.check(device, poison, inputs, options, budgets, sink=1, recent=1, k_max=200)
    cases.check(
        device, poison, inputs, options, [b + 199 for b in budgets], sink=1, recent=1, k_max=400
    )


def test_a_sample_of_a_few_tokens(device, monkeypatch, poison, make_token_slots) -> None:
    for sample, unsampled in ((16, 20), (64, 0), (1024, 0)):
        monkeypatch.setattr(sampling, "SAMPLE", sample)
        monkeypatch.setattr(sampling, "UNSAMPLED", unsampled)
        inputs, options = cases.make_inputs(make_token_slots, [21, 600, 1], 2, 2, (1, 2), 0)
        cases.check(device, poison, inputs, options, [3, 40, 40], sink=0, recent=2, k_max=40)


@pytest.mark.parametrize("programs", [1, 2, 5])
def test_programs_that_take_several_tiles(
    device, monkeypatch, poison, make_token_slots, small, programs
) -> None:
    cases.set_programs(monkeypatch, programs)
    for lengths in ([1300], [1300, 40, 700]):
        inputs, options = cases.make_inputs(make_token_slots, lengths, 8, 8, (1, 2), 0)
        assert cases.make_buffers(inputs, options, device, 50).sizes.tiles > 20
        budgets = [50] * len(lengths)
        cases.check(device, poison, inputs, options, budgets, sink=4, recent=4, k_max=50)


def test_layers_that_share_buffers_may_have_other_weights(
    device, poison, make_token_slots, small
) -> None:
    inputs, options = cases.make_inputs(make_token_slots, [900, 650], 2, 4, (1, 2, 4, 8), 0)
    buffers = cases.make_buffers(inputs, options, device, 40)
    for weights in ((1, 2, 4, 8), (1, 2, 4, 9), BYTES):
        inputs, options = cases.make_inputs(make_token_slots, [900, 650], 2, 4, weights, 0)
        cases.check(
            device, poison, inputs, options, [40, 9], sink=1, recent=1, k_max=40, buffers=buffers
        )


@pytest.mark.parametrize("last", [False, True])
def test_either_order_of_dimensions(
    device, monkeypatch, poison, make_token_slots, small, last
) -> None:
    if device.type == "cpu":  # on a GPU it is what Triton needs
        monkeypatch.setattr(scoring, "LANES_LAST", tl.constexpr(last))
    inputs, options = cases.make_inputs(make_token_slots, [1300, 40, 700], 4, 4, (1, 2, 4), 8)
    cases.check(device, poison, inputs, options, [50] * 3, sink=4, recent=4, k_max=50)


def test_runs_are_equal(device, monkeypatch, make_token_slots, small) -> None:
    inputs, options = cases.make_inputs(make_token_slots, [1200, 310, 40], 8, 1, (1,), 0)
    arguments = (*inputs, torch.tensor([100, 30, 50], dtype=torch.int32))
    # A few scores only: nearly all that is selected is decided by position.
    options = {**options, "sink": 2, "recent": 2, "k_max": 100}
    moved = cases.move(device, arguments, options)
    first = rank_triton(*moved[0], **moved[1])
    # Other programs, and so other orders of what is listed.
    for programs in (1320, 3, 6, 9):
        cases.set_programs(monkeypatch, programs)
        assert torch.equal(rank_triton(*moved[0], **moved[1]), first)


@pytest.mark.parametrize(
    ("lengths", "budgets"),
    [([0, 90, 30, 1], [0, 0, 0, 3]), ([400, 90, 0, 0], [-3, 5, 40, 0])],
    ids=["none", "negative"],
)
def test_rows_of_no_tokens_or_budget(device, poison, make_token_slots, small, lengths, budgets):
    """Lengths and budgets are trusted: nothing but the row itself is to suffer."""
    inputs, options = cases.make_inputs(make_token_slots, [400, 90, 40, 9], 2, 2, (1, 2), 0)
    arguments = (*inputs[:3], torch.tensor(lengths), torch.tensor(budgets, dtype=torch.int32))
    moved = cases.move(device, arguments, {**options, "sink": 1, "recent": 2, "k_max": 50})
    out = poison(4, 2, 50, dtype=torch.int32, device=device)
    rank_triton(*moved[0], **moved[1], out=out)
    kept = [max(0, min(pair)) for pair in zip(lengths, budgets, strict=True)]
    assert (out >= 0).sum(2).tolist() == [[count] * 2 for count in kept]
    assert (out >= -1).all()


def brute_force(q_codes, codes, token_slots, lengths, budgets, weights, sink, recent, k_max):
    """Score token by token in Python's integers, sort by falling score, then by position."""
    batch, kv_heads, planes = len(lengths), codes.shape[1], len(weights)
    result = torch.full((batch, kv_heads, k_max), -1, dtype=torch.int32)
    for b, length in enumerate(lengths):
        slots = token_slots[b, :length].tolist()
        for h in range(kv_heads):
            queries = q_codes[b, h * planes : (h + 1) * planes].tolist()
            ranked = []
            for t, slot in enumerate(slots):
                distance = sum(
                    weight * bin((word ^ other) & 0xFFFFFFFF).count("1")
                    for weight, query in zip(weights, queries, strict=True)
                    for word, other in zip(query, codes[slot, h].tolist(), strict=True)
                )
                forced = t < sink or t >= length - recent
                ranked.append((-1 if forced else distance, t))
            kept = sorted(t for _, t in sorted(ranked)[: min(budgets[b], k_max)])
            result[b, h, : len(kept)] = torch.tensor([slots[t] for t in kept])
    return result


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=3),
    budgets=st.lists(st.integers(1, 20), min_size=3, max_size=3),
    sink=st.sampled_from([0, 1, 3, 25]),
    recent=st.sampled_from([0, 1, 5, 80]),
    more=st.integers(0, 2),
    kv_heads=st.integers(1, 3),
    weights=st.sampled_from([(1,), (1, 2), (1, 1, 1), (3, 1)]),
    room=st.sampled_from([None, 12, 30]),
    values=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=6),
    seed=st.integers(0, 2**20),
)
def test_both_sort_by_score_and_position(
    device, lengths, budgets, sink, recent, more, kv_heads, weights, room, values, seed
) -> None:
    if device.type == "cuda":
        pytest.skip("sizes of every kind, for each of which Triton would compile")
    generator = torch.Generator().manual_seed(seed)
    batch, width, slots = len(lengths), max(lengths) + seed % 3, 90
    choices = torch.tensor(values, dtype=torch.int32)

    def few(*shape: int) -> torch.Tensor:
        """Codes of a few values: many scores are equal."""
        return choices[torch.randint(len(values), shape, generator=generator)]

    table = torch.full((batch, width), -7, dtype=torch.int32)
    for b, length in enumerate(lengths):
        table[b, :length] = torch.randperm(slots, generator=generator)[:length].int()
    inputs = (few(batch, kv_heads * len(weights), 1), few(slots, kv_heads, 1), table)
    budgets = budgets[:batch]
    k_max = max(1, max(budgets) - 1) + more
    arguments = (*inputs, torch.tensor(lengths), torch.tensor(budgets, dtype=torch.int32))
    ends = {"plane_weights": weights, "sink": sink, "recent": recent, "k_max": k_max}
    expected = brute_force(*inputs, lengths, budgets, weights, sink, recent, k_max)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "SAMPLE", 16)
        patch.setattr(sampling, "UNSAMPLED", 25)
        patch.setattr(taking, "chunk", lambda k_max: 16)
        patch.setattr(taking, "IN_REGISTERS", (64, 128) if seed % 2 else (64,))
        patch.setattr(taking, "SECTION_IN_REGISTERS", (64, 128) if seed % 2 else (64,))
        if room:
            cases.set_room(patch, room)
        assert torch.equal(rank_triton(*arguments, **ends), expected)
    # The reference takes budgets of at most k_max.
    clamped = (*arguments[:4], arguments[4].clamp(max=k_max))
    assert torch.equal(rank(*clamped, **ends), expected)


def large(make_token_slots, batch, length, kv_heads, words, weights):
    """Contexts of about so many tokens on a GPU, codes near to the query's among them."""
    lengths = [max(1, length - 997 * b) for b in range(batch)]
    inputs, options = cases.make_inputs(make_token_slots, lengths, kv_heads, words, weights, 0)
    assert inputs[2].shape[0] == batch
    return inputs, options


@pytest.mark.gpu
@pytest.mark.parametrize("k_max", [512, 2048])
@pytest.mark.parametrize(
    ("batch", "length", "kv_heads", "weights"),
    [
        (2, 131072, 8, (1, 2, 4, 8)), (2, 131072, 8, (1,) * 4), (5, 9000, 32, (1,)),
        (5, 9000, 32, (1, 2, 4, 8)), (1, 131072, 3, (1,) * 3), (1, 40000, 32, (1,) * 4),
    ],
    ids=str,
)  # fmt: skip
def test_long_contexts_on_a_gpu(
    poison, make_token_slots, batch, length, kv_heads, weights, k_max
) -> None:
    device = torch.device("cuda")
    inputs, options = large(make_token_slots, batch, length, kv_heads, 4, weights)
    budgets = [k_max - 3 * b for b in range(batch)]
    ends = {"sink": 16, "recent": 64, "k_max": k_max}
    buffers = cases.make_buffers(inputs, options, device, k_max)
    for _ in range(3):
        cases.check(device, poison, inputs, options, budgets, **ends, buffers=buffers)
        assert cases.found_in(buffers, inputs, options).sum(0).ge(k_max - 3 * batch).all()


@pytest.mark.gpu
def test_a_graph_replays_with_other_lengths_and_budgets(make_token_slots) -> None:
    inputs, options = cases.make_inputs(make_token_slots, [9000, 9000], 8, 4, (1, 2, 4, 8), 0)
    options = {**options, "sink": 4, "recent": 16, "k_max": 256}
    arguments, options = cases.move(
        "cuda", (*inputs, torch.full((2,), 256, dtype=torch.int32)), options
    )
    buffers = cases.make_buffers(inputs, options, "cuda", 256)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        rank_triton(*arguments, **options, buffers=buffers)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = rank_triton(*arguments, **options, buffers=buffers)
    for lengths, budgets in (([9000, 40], [3, 256]), ([5, 2049], [256, 100]), ([700] * 2, [8, 9])):
        arguments[3].copy_(torch.tensor(lengths))
        arguments[4].copy_(torch.tensor(budgets))
        graph.replay()
        expected = rank(*(argument.cpu() for argument in arguments), **options)
        assert torch.equal(out.cpu(), expected)
