"""Dense attention: the CPU against float64, Triton against float64, with and without groups."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from attend_cases import (
    BF16,
    F16,
    F32,
    NOWHERE,
    WRONG,
    WRONG_TO_LAUNCH,
    assert_close,
    moved,
    queries_and_caches,
    softmax_attention,
)
from hata_kernels.attend import DenseBuffers, attend_dense, dense
from hata_kernels.bits import power_of_2
from hata_kernels.rows import RowGroups, group_rows

PADDING = (None, 0, 1)

# Rows: document, tokens of it that the row begins with, length. Unit of groups, least members.
ONE = [("a", 90, 90 + n) for n in (1, 40, 7, 16, 90)]
MANY = [
    *[("a", 130, 140), ("b", 64, 64), ("a", 48, 150), PADDING, ("b", 64, 100), ("a", 130, 131)],
    *[("c", 100, 110), ("a", 130, 200), ("b", 33, 60), ("a", 96, 180), ("d", 50, 51), PADDING],
    *[("a", 130, 133), ("d", 50, 60), ("a", 112, 220)],
]
ALONE = [(None, 0, n) for n in (1, 2, 15, 16, 17, 130, 200)]
CASES = [
    pytest.param(ONE, 16, 2, 1, 4, 64, id="one-document"),
    pytest.param(MANY, 16, 2, 2, 1, 64, id="documents-G1"),
    pytest.param(MANY, 5, 2, 1, 3, 96, id="documents-unit5-G3-D96"),
    pytest.param(MANY, 16, 3, 1, 7, 128, id="documents-G7-D128"),
    pytest.param(ONE, 16, 2, 2, 20, 256, id="one-document-G20-D256"),
    pytest.param(ALONE, 16, 2, 2, 4, 64, id="alone"),
    pytest.param(ONE[:3], 16, 4, 1, 64, 64, id="too-few-for-groups-G64"),
    pytest.param(ONE[:3], 16, 1, 1, 2, 64, id="groups-of-one"),
]
# Programs, query heads of a program (all members at once, or some at a time).
SPLITS = [
    pytest.param(1, 128, id="one-program"),
    pytest.param(5, 128, id="5-programs"),
    pytest.param(6, 16, id="6-programs-of-16-heads"),
    pytest.param(4, 32, id="4-programs-of-32-heads"),
]


def small(monkeypatch, processors: int, queries: int = 128) -> None:
    """Blocks of 16 tokens and as many programs as a test can run."""
    for name in ("PREFIX_LEAST", "TAIL_LEAST"):
        monkeypatch.setattr(dense, name, 1)
    monkeypatch.setattr(dense, "BLOCK", 16)
    monkeypatch.setattr(dense, "PROCESSORS", processors)
    monkeypatch.setattr(dense, "QUERIES", queries)


def make_table(rows) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Slots of rows that begin as documents do, garbage after the lengths; lengths; slots used."""
    free = iter((torch.randperm(sum(length + 1000 for *_, length in rows)) + 1).tolist())
    documents = {}
    table = torch.full((len(rows), max((n for *_, n in rows), default=1) + 3), NOWHERE)
    for b, (document, begins, length) in enumerate(rows):
        if document is None and length == 1:
            table[b, 0] = 0  # as a graph's padding has it
            continue
        slots = documents.setdefault(document, []) if document else []
        while len(slots) < begins:
            slots.append(next(free))
        own = slots[:begins] + [next(free) for _ in range(length - begins)]
        table[b, :length] = torch.tensor(own)
    lengths = torch.tensor([length for *_, length in rows], dtype=torch.int64)
    return table.int(), lengths, sum(length + 1000 for *_, length in rows) + 1


def make_inputs(rows, kv_heads, group, dim, dtype=F16):
    """What must not be read is NaN in the caches; queries are a slice of a fused projection."""
    table, lengths, slots = make_table(rows)
    fused = torch.randn(len(rows), (group + 2) * kv_heads * dim).to(dtype)
    q = fused[:, : group * kv_heads * dim].unflatten(1, (-1, dim))
    caches = [torch.full((slots, kv_heads, dim), float("nan"), dtype=dtype) for _ in range(2)]
    for b, length in enumerate(lengths.tolist()):
        chosen = table[b, :length].long()
        for cache in caches:
            cache[chosen] = torch.randn(length, kv_heads, dim).to(dtype)
    return q, *caches, table, lengths


def make_groups(table, lengths, device, unit=16, least=2) -> RowGroups:
    rows, width = table.shape
    groups = RowGroups(rows + 3, width, torch.device(device), unit=unit, least=least)
    for tensor in (groups.shared, groups.members, groups.sizes, groups.extents, groups.leaders):
        tensor.fill_(-987654321)
    group_rows(table.to(device), lengths.int().to(device), longest=width, groups=groups)
    return groups


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
def test_reference_is_softmax_attention(poison, dtype) -> None:
    inputs = make_inputs(MANY, 2, 3, 64, dtype)
    out = poison(len(MANY), 6, 64, dtype=dtype)
    groups = RowGroups(len(MANY), 1, torch.device("cpu"))
    assert attend_dense(*inputs, groups, scale=0.2, out=out) is out
    assert_close(out, softmax_attention(*inputs, scale=0.2))
    assert torch.equal(attend_dense(*inputs, None, scale=0.2), out)


@pytest.mark.parametrize(("processors", "queries"), SPLITS)
@pytest.mark.parametrize(("rows", "unit", "least", "kv_heads", "group", "dim"), CASES)
def test_triton_is_softmax_attention(
    device,
    monkeypatch,
    poison,
    rows,
    unit,
    least,
    kv_heads,
    group,
    dim,
    processors,
    queries,
) -> None:
    small(monkeypatch, processors, queries)
    inputs = make_inputs(rows, kv_heads, group, dim)
    groups = make_groups(*inputs[3:], device, unit, least)
    options = {"scale": 2 / dim**0.5}
    out = poison(len(rows), kv_heads * group, dim, dtype=F16, device=device)
    there = [a.to(device) for a in inputs]
    assert attend_dense(*there, groups, **options, out=out) is out
    assert_close(out, softmax_attention(*inputs, **options))


@pytest.mark.parametrize("queries", [16, 128])
@pytest.mark.parametrize("processors", [1, 2, 4, 7, 11])
def test_any_number_of_programs(device, monkeypatch, processors, queries) -> None:
    # Chunks of one group begin whole runs apart or not, runs end anywhere.
    small(monkeypatch, processors, queries)
    users = [("a", 130, 131 + n) for n in range(0, 30, 3)]
    rows = [*MANY[:9], *users, ("e", 200, 201), ("e", 190, 200)]
    inputs = make_inputs(rows, 1, 4, 64)
    groups = make_groups(*inputs[3:], device)
    assert groups.sizes.max() > 8  # three chunks of four
    out = attend_dense(*(a.to(device) for a in inputs), groups, scale=0.2)
    assert_close(out, softmax_attention(*inputs, scale=0.2))


@pytest.mark.parametrize("integer", [torch.int32, torch.int64], ids=str)
def test_every_length_beside_every_prefix(device, monkeypatch, integer) -> None:
    small(monkeypatch, 6)
    sizes = [1, 15, 16, 17, 33]
    rows = [(n, n, n + m) for n, m in itertools.product(sizes, [0, *sizes]) for _ in range(2)]
    *inputs, lengths = make_inputs(rows, 1, 2, 64)
    groups = make_groups(inputs[3], lengths, device, unit=1)
    inputs.append(lengths.to(integer))
    out = attend_dense(*(a.to(device) for a in inputs), groups, scale=0.2)
    assert_close(out, softmax_attention(*inputs, scale=0.2))


@pytest.mark.parametrize("queries", [16, 128])
def test_extreme_logits(device, monkeypatch, queries) -> None:
    # One token has all the weight, at any place; then all are far below zero.
    small(monkeypatch, 3, queries)
    q = torch.ones(6, 2, 64, dtype=F16)
    k_cache = torch.full((60, 1, 64), -100.0, dtype=F16)
    k_cache[7] = 100
    v_cache = torch.randn(60, 1, 64).to(F16)
    table = torch.arange(60).repeat(6, 1)
    table[1:3, 45:] = torch.arange(15)
    table[3:] = table[3:].flip(1).masked_fill(table[3:].flip(1) == 7, 8)
    inputs = (q, k_cache, v_cache, table.int(), torch.full((6,), 60))
    groups = make_groups(*inputs[3:], device, least=3)
    assert groups.sizes[:6].tolist() == [3, 0, 0, 3, 0, 0]
    out = attend_dense(*(a.to(device) for a in inputs), groups, scale=5.0)
    assert_close(out, softmax_attention(*inputs, scale=5.0))


def test_the_result_is_the_same_every_time_and_with_buffers_of_other_calls(
    device, monkeypatch, poison
) -> None:
    small(monkeypatch, 2)
    buffers = DenseBuffers(20, q_heads=6, kv_heads=1, dim=96, device=device)
    calls = ((MANY[:9], 1, 6, 96), (ONE, 2, 3, 64), (ALONE, 1, 1, 64), (ONE[:1], 1, 6, 64))
    for rows, kv_heads, group, dim in calls:
        inputs = make_inputs(rows, kv_heads, group, dim)
        groups = make_groups(*inputs[3:], device)
        inputs = [a.to(device) for a in inputs]
        first = attend_dense(*inputs, groups, scale=0.1)
        buffers.partial.fill_(float("nan"))
        buffers.lse.fill_(float("nan"))
        out = poison(*first.shape, dtype=F16, device=device)
        for _ in range(2):
            attend_dense(*inputs, groups, scale=0.1, out=out, buffers=buffers)
            assert torch.equal(out, first)


@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize("group", [1, 3, 4, 64])
@pytest.mark.parametrize("kv_heads", [1, 8, 32, 300])
def test_buffers_hold_every_smaller_batch(kv_heads, group, dim) -> None:
    sizes = (group, kv_heads, dim)
    splits = [dense.dense_split(rows, *sizes) for rows in range(1, 150)]
    needed = [split.prefix_places + split.tail_places for split in splits]
    for rows in range(1, 150):
        assert dense.most_places(rows, *sizes) == max(needed[:rows])
        assert 16 <= splits[rows - 1].members * power_of_2(group) <= 128


def test_where_nobody_looked_for_groups(device, monkeypatch) -> None:
    small(monkeypatch, 5)
    for rows in (ONE, ALONE[:2]):
        inputs = make_inputs(rows, 2, 3, 64)
        expected = softmax_attention(*inputs, scale=0.2)
        out = attend_dense(*(a.to(device) for a in inputs), None, scale=0.2)
        assert_close(out, expected)


def test_an_empty_batch(device) -> None:
    inputs = make_inputs([], 2, 2, 64)
    moved = [argument.to(device) for argument in inputs]
    assert attend_dense(*moved, RowGroups(1, 8, device), scale=1.0).shape == (0, 4, 64)


@pytest.mark.gpu
@pytest.mark.parametrize("dim", [64, 96, 128, 256])
@pytest.mark.parametrize("group", [1, 3, 4, 7, 8, 17, 64])
def test_triton_bfloat16(poison, dim, group) -> None:
    # On the GPU only: Triton's interpreter has no bfloat16. Blocks and programs as they are.
    few = [("a", 700, 701 + n) for n in (0, 1, 300)] + [("a", 500, 900), (None, 0, 3000), PADDING]
    many = [("a", 2048, 2100 + n) for n in range(150)] + [("b", 1500, 1600)] * 9
    for rows in (few, many):
        inputs = make_inputs(rows, 2, group, dim, BF16)
        there = [a.cuda() for a in inputs]
        groups = make_groups(*inputs[3:], "cuda", unit=64)
        out = poison(len(rows), 2 * group, dim, dtype=BF16, device="cuda")
        attend_dense(*there, groups, scale=dim**-0.5, out=out)
        assert_close(out, attend_dense(*inputs, None, scale=dim**-0.5))


def float32_attention(q, k_cache, v_cache, table, lengths, scale) -> torch.Tensor:
    """Attention of one row after the other in float32, where the inputs are."""
    out = []
    for b, length in enumerate(lengths.tolist()):
        slots = table[b, :length].long()
        k, v = (cache[slots].float().transpose(0, 1) for cache in (k_cache, v_cache))
        grouped = q[b].float().view(k.shape[0], -1, k.shape[2])
        weights = (scale * grouped @ k.transpose(1, 2)).softmax(2)
        out.append((weights @ v).view(q.shape[1:]))
    return torch.stack(out)


@pytest.mark.gpu
def test_long_contexts_of_many_users(poison) -> None:
    lengths = torch.tensor([*[30000 + 77 * n for n in range(70)], *[9000] * 5, 20000, 1, 1])
    table = torch.randperm(2_600_000, device="cuda").int()[: 78 * 33000].view(78, 33000)
    table[1:70, :29000] = table[0, :29000]
    table[40:70, 20000:29000] = table[40, 20000:29000]
    table[71:75, :8500] = table[70, :8500]
    make = {"dtype": BF16, "device": "cuda"}
    q = torch.randn(78, 32, 128, **make)
    caches = [torch.randn(2_600_000, 8, 128, **make) for _ in range(2)]
    groups = RowGroups(78, 33000, q.device)
    group_rows(table, lengths.int().cuda(), longest=33000, groups=groups)
    assert groups.sizes[[0, 70]].tolist() == [70, 5]
    inputs = (q, *caches, table, lengths.cuda())
    out = poison(78, 32, 128, **make)
    attend_dense(*inputs, groups, scale=0.2, out=out)
    expected = float32_attention(*inputs, scale=0.2)
    for row in range(78):
        assert_close(out[row], expected[row].double().cpu())


@pytest.mark.gpu
def test_slots_beyond_int32_elements(poison) -> None:
    slots = 2**31 // (8 * 256) + 100  # slots * heads * D passes 2**31
    q, *small_caches, table, lengths = make_inputs(ONE, 8, 2, 256, BF16)
    used = small_caches[0].shape[0]
    pools = [torch.zeros(slots, 8, 256, dtype=BF16, device="cuda") for _ in range(2)]
    for pool, last in zip(pools, small_caches, strict=True):
        pool[-used:] = last.cuda()
    far = torch.where(table == NOWHERE, table, table + slots - used)
    groups = make_groups(far, lengths, "cuda")
    out = poison(len(ONE), 16, 256, dtype=BF16, device="cuda")
    attend_dense(q.cuda(), *pools, far.cuda(), lengths.cuda(), groups, scale=0.1, out=out)
    expected = softmax_attention(q, *small_caches, table, lengths, scale=0.1)
    assert_close(out, expected)


@pytest.mark.gpu
def test_a_captured_step_allocates_nothing_and_follows_the_lengths(poison) -> None:
    inputs = [a.cuda() for a in make_inputs([(None, 0, 997)] * 12, 2, 4, 128, BF16)]
    q, k_cache, v_cache, table, lengths = inputs
    for cache in (k_cache, v_cache):
        cache.nan_to_num_(0)
    groups = RowGroups(16, 1000, q.device, unit=64)
    out = poison(12, 8, 128, dtype=BF16, device="cuda")
    buffers = DenseBuffers(16, 8, 2, 128, "cuda")
    short = lengths.int()

    def step() -> None:
        group_rows(table, short, longest=1000, groups=groups)
        out.fill_(math.nan)  # the launch before `attend_dense` must not write groups
        attend_dense(*inputs, groups, scale=0.1, out=out, buffers=buffers)

    step()
    graph = torch.cuda.CUDAGraph()
    allocations = []
    with torch.cuda.graph(graph):
        allocations.append(torch.cuda.memory_stats()["allocation.all.allocated"])
        step()
        allocations.append(torch.cuda.memory_stats()["allocation.all.allocated"])
    assert allocations[0] == allocations[1]
    for rows in (MANY[:12], [("a", 900, 901 + n) for n in range(12)], [PADDING] * 12):
        new_table, new_lengths, _ = make_table(rows)
        new_table[new_table >= k_cache.shape[0]] = 0
        table[:, : new_table.shape[1]] = new_table.cuda()
        lengths.copy_(new_lengths)
        short.copy_(new_lengths)
        out.fill_(float("nan"))
        graph.replay()
        assert_close(out, float32_attention(*inputs, scale=0.1).double().cpu())


def good() -> dict:
    return {
        **queries_and_caches(),
        "token_slots": torch.zeros(2, 200, dtype=torch.int32),
        "seq_lens": torch.tensor([5, 10]),
        "groups": RowGroups(2, 200, torch.device("cpu")),
        "scale": 1.0,
    }


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        *WRONG,
        ({"q": torch.zeros(2, 64, 6).half().transpose(1, 2)}, r"q\.stride\(\)\[1:\]: expected"),
        (
            {"k_cache": torch.zeros(50, 3, 64).to(torch.float8_e4m3fn)},
            r"k_cache\.dtype: expected torch\.float16, found torch\.float8",
        ),
        ({"token_slots": torch.zeros(3, 8).int()}, r"token_slots\.shape: expected \[2, any\]"),
        ({"token_slots": torch.zeros(2, 0).int()}, r"token_slots\.shape\[1\]: expected at least 1"),
        ({"token_slots": torch.zeros(2, 8).long()}, r"token_slots\.dtype: expected torch\.int32"),
        ({"token_slots": torch.zeros(8, 2).int().T}, r"token_slots\.stride\(1\): expected 1"),
        ({"groups": RowGroups(1, 200, torch.device("cpu"))}, r"groups\.rows: expected at least 2"),
        ({"groups": RowGroups(2, 200, torch.device("meta"))}, r"groups\.device: expected cpu"),
        ({"scale": 0.0}, r"scale: expected more than 0, found 0\.0"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(changed, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attend_dense(**{**good(), **changed})


def test_reference_names_lengths_that_do_not_fit() -> None:
    for length in (0, 201):
        with pytest.raises(ValueError, match="seq_lens: expected 1 to 200, found"):
            attend_dense(**{**good(), "seq_lens": torch.tensor([1, length])})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        *WRONG_TO_LAUNCH,
        (
            {"buffers": lambda device: DenseBuffers(1, 2, 1, 64, device)},
            r"buffers\.partial: expected \d+ numbers, found \d+",
        ),
        (
            {"buffers": DenseBuffers(6, 6, 3, 64, "meta")},
            r"buffers\.partial\.device: expected c\w+(:0)?, found meta",
        ),
    ],
    ids=["dtype", "group", "dim", "small-buffers", "device"],
)
def test_launches_name_what_only_the_reference_does(device, changed, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attend_dense(**moved({**good(), "groups": None, **changed}, device))


@pytest.mark.parametrize("name", ["rows", "q_heads", "kv_heads", "dim"])
def test_buffers_need_sizes(name: str) -> None:
    sizes = {"rows": 4, "q_heads": 4, "kv_heads": 2, "dim": 64, name: 0}
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, found 0"):
        DenseBuffers(**sizes, device="cpu")


def test_buffers_need_whole_groups() -> None:
    with pytest.raises(ValueError, match="q_heads: expected a multiple of 3, found 4"):
        DenseBuffers(4, 4, 3, 64, "cpu")
