"""Gather and attend: the CPU against float64, Triton against float64, and buffers that suffice."""

from __future__ import annotations

import itertools

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
from hata_kernels.attend import AttendBuffers, attend, attend_naive, gather

SLOTS = 900

# lengths, budgets, k_max, KV heads, group, head size
CASES = [
    pytest.param([1], [1], 1, 1, 1, 64, id="one-slot"),
    pytest.param([5, 1], [9, 1], 9, 2, 4, 64, id="shorter-than-budget"),
    pytest.param([400, 400, 63], [63, 64, 65], 65, 1, 3, 96, id="around-a-block-G3-D96"),
    pytest.param([300, 2], [256, 256], 256, 2, 7, 128, id="whole-blocks-G7-D128"),
    pytest.param([200], [130], 200, 3, 1, 64, id="budget-below-k-G1"),
    pytest.param([70, 90], [90, 1], 300, 1, 20, 256, id="parts-without-work-G20-D256"),
    pytest.param([100], [100], 100, 1, 64, 64, id="G64"),
]
# Slots of a block, and programs at once: as on a GPU, one part a row, some blocks a part.
SPLITS = [
    pytest.param(32, 528, id="blocks-of-32"),
    pytest.param(64, 1, id="one-part"),
    pytest.param(16, 5, id="blocks-of-16"),
]


def set_blocks(monkeypatch, block: int, programs: int) -> None:
    """Let programs have blocks of one size, and so many of them run at once."""
    monkeypatch.setattr(gather, "BLOCKS", (block, block))
    monkeypatch.setattr(gather, "IN_FLIGHT", block * programs)


def make_inputs(lengths, budgets, k_max, kv_heads, group, dim, dtype):
    """Random slots with repeats; what must not be read is NaN in the caches, garbage in the rows.

    Queries are a slice of a fused projection.
    """
    batch = len(lengths)
    fused = torch.randn(batch, (group + 2) * kv_heads * dim).to(dtype)
    q = fused[:, : group * kv_heads * dim].unflatten(1, (-1, dim))
    slots = torch.full((batch, kv_heads, k_max), NOWHERE, dtype=torch.int32)
    caches = [torch.full((SLOTS, kv_heads, dim), float("nan")) for _ in range(2)]
    for b, count in enumerate(map(min, lengths, budgets)):
        slots[b, :, :count] = torch.randint(1, SLOTS, (kv_heads, count), dtype=torch.int32)
        for h in range(kv_heads):
            chosen = slots[b, h, :count].long()
            for cache in caches:
                cache[chosen, h] = torch.randn(count, dim)
    k_cache, v_cache = (cache.to(dtype) for cache in caches)
    seq_lens = torch.tensor(lengths, dtype=torch.int64)
    return q, k_cache, v_cache, slots, seq_lens, torch.tensor(budgets, dtype=torch.int32)


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
def test_reference_is_softmax_attention(poison, dtype) -> None:
    inputs = make_inputs([50, 1, 9], [40, 7, 9], 40, 2, 3, 64, dtype)
    out = poison(3, 6, 64, dtype=dtype)
    assert attend(*inputs, scale=0.25, out=out) is out
    assert_close(out, softmax_attention(*inputs, scale=0.25))


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_reference_is_attend_naive_bit_for_bit(dtype) -> None:
    q, k_cache, v_cache, slots, seq_lens, budgets = make_inputs(
        [50, 700, 9], [600, 600, 4], 600, 3, 3, 64, dtype
    )
    out = attend(q, k_cache, v_cache, slots, seq_lens, budgets, scale=0.125)
    counts = torch.tensor([50, 600, 4])
    assert torch.equal(out, attend_naive(q, k_cache, v_cache, slots, counts, scale=0.125))


@pytest.mark.parametrize(("block", "programs"), SPLITS)
@pytest.mark.parametrize(("lengths", "budgets", "k_max", "kv_heads", "group", "dim"), CASES)
def test_triton_is_softmax_attention(
    device,
    monkeypatch,
    poison,
    lengths,
    budgets,
    k_max,
    kv_heads,
    group,
    dim,
    block,
    programs,
) -> None:
    set_blocks(monkeypatch, block, programs)
    inputs = make_inputs(lengths, budgets, k_max, kv_heads, group, dim, F16)
    options = {"scale": 2 / dim**0.5}
    out = poison(len(lengths), kv_heads * group, dim, dtype=F16, device=device)
    assert attend(*(a.to(device) for a in inputs), **options, out=out) is out
    assert_close(out, softmax_attention(*inputs, **options))


@pytest.mark.parametrize("integer", [torch.int32, torch.int64], ids=str)
def test_every_combination_of_length_and_budget(device, monkeypatch, poison, integer) -> None:
    set_blocks(monkeypatch, 16, 528)
    sizes = [1, 2, 15, 16, 17, 48, 50]
    lengths, budgets = zip(*itertools.product([*sizes, 800], sizes), strict=True)
    *inputs, seq_lens, budgets = make_inputs(lengths, budgets, 50, 1, 2, 64, F16)
    inputs += [seq_lens.to(integer), budgets]
    out = poison(len(lengths), 2, 64, dtype=F16, device=device)
    attend(*(a.to(device) for a in inputs), scale=0.2, out=out)
    assert_close(out, softmax_attention(*inputs, scale=0.2))


@pytest.mark.parametrize("programs", [1, 528])
def test_extreme_logits(device, monkeypatch, programs) -> None:
    # One slot has all the weight, at any place; then all are far below zero.
    set_blocks(monkeypatch, 16, programs)
    q = torch.ones(3, 1, 64, dtype=F16)
    k_cache = torch.full((40, 1, 64), -100.0, dtype=F16)
    k_cache[7] = 100
    v_cache = torch.randn(40, 1, 64).to(F16)
    slots = torch.arange(40, dtype=torch.int32).expand(3, 1, 40).contiguous()
    slots[1, 0] = slots[1, 0].flip(0)
    slots[2, 0, 7] = 8
    sizes = (torch.full((3,), 40), torch.full((3,), 40, dtype=torch.int32))
    inputs = (q, k_cache, v_cache, slots, *sizes)
    out = attend(*(a.to(device) for a in inputs), scale=5.0)
    assert_close(out, softmax_attention(*inputs, scale=5.0))


@pytest.mark.parametrize("programs", [1, 528])
def test_rows_stay_within_themselves_and_the_pool(device, monkeypatch, poison, programs) -> None:
    # More is counted than there is: slots of -1, and counts beyond k_max.
    set_blocks(monkeypatch, 16, programs)
    q, k_cache, v_cache, slots, *_ = make_inputs([40, 40], [40, 40], 40, 1, 2, 64, F16)
    k_cache, v_cache = k_cache.nan_to_num(1), v_cache.nan_to_num(1)
    slots[0, 0, 30:] = -1
    sizes = [torch.tensor([999, 999]), torch.tensor([999, 999], dtype=torch.int32)]
    inputs = (q, k_cache, v_cache, slots)
    out = poison(2, 2, 64, dtype=F16, device=device)
    attend(*(a.to(device) for a in (*inputs, *sizes)), scale=0.2, out=out)
    expected = softmax_attention(q, k_cache, v_cache, slots.clamp(min=0), *sizes, scale=0.2)
    assert_close(out, expected)


@pytest.mark.parametrize("k_max", [1, 64, 65, 200, 512, 2048, 3000])
@pytest.mark.parametrize("rows", [1, 2, 7, 40, 131, 132, 264, 265, 5000])
def test_buffers_hold_every_smaller_batch_and_selection(rows, k_max) -> None:
    most, largest = gather.most_parts(rows, k_max), 0
    for r, k in itertools.product(range(1, min(rows, 300) + 1), [*range(1, k_max, 60), k_max]):
        parts, block = gather.attend_parts(r, k)
        assert (parts - 1) * block < k
        assert parts == 1 or r * parts * block <= gather.IN_FLIGHT  # all run at once
        if parts > 1:
            largest = max(largest, r * parts)
    assert largest <= most <= gather.IN_FLIGHT // min(gather.BLOCKS)


@pytest.mark.parametrize(
    ("rows", "k_max", "expected"),
    [
        (8, 512, (8, 64)),  # every block a part
        (8, 2048, (32, 64)),
        (64, 512, (8, 32)),
        (64, 2048, (8, 32)),  # 512 programs of 528 that run at once
        (48, 2028, (11, 32)),
        (256, 512, (2, 32)),
        (529, 500, (1, 64)),  # more rows than run at once
    ],
)
def test_parts_of_an_h100(rows, k_max, expected) -> None:
    assert gather.attend_parts(rows, k_max) == expected


@pytest.mark.parametrize(
    ("count", "used"), [(1, 1), (16, 1), (17, 2), (128, 8), (129, 5), (500, 8)]
)
def test_a_row_is_split_by_what_it_attends(device, monkeypatch, count, used) -> None:
    # Not by k_max: a server whose budgets may be long would leave most programs without work.
    set_blocks(monkeypatch, 16, 8)
    inputs = [a.to(device) for a in make_inputs([900], [count], 500, 1, 2, 64, F16)]
    buffers = AttendBuffers(1, 2, 64, 500, device)
    buffers.lse.fill_(float("nan"))
    out = attend(*inputs, scale=0.2, buffers=buffers)
    written = buffers.lse.view(8, 2).isfinite().all(dim=1).cpu()
    assert written.tolist() == [part < used for part in range(8)]
    assert_close(out, softmax_attention(*(a.cpu() for a in inputs), scale=0.2))


@pytest.mark.parametrize("rows", [1, 3, 24, 300])
def test_rows_of_one_part_need_no_buffers(rows) -> None:
    assert AttendBuffers(rows, 4, 128, 2048, "meta").partial.numel() > 0
    assert AttendBuffers(rows, 4, 128, min(gather.BLOCKS), "meta").partial.numel() == 0


def test_shared_buffers_change_nothing(device, monkeypatch, poison) -> None:
    set_blocks(monkeypatch, 16, 11)
    buffers = AttendBuffers(rows=8, group=6, dim=96, k_max=100, device=device)
    for sizes in ((4, 2, 100, 3, 96), (1, 1, 100, 6, 64), (2, 3, 33, 1, 64), (8, 1, 50, 6, 96)):
        batch, kv_heads, k_max, group, dim = sizes
        counts = [max(1, k_max - 30 * b) for b in range(batch)]
        inputs = make_inputs(counts, counts, k_max, kv_heads, group, dim, F16)
        inputs = [a.to(device) for a in inputs]
        buffers.partial.fill_(float("nan"))
        buffers.lse.fill_(float("nan"))
        out = poison(batch, kv_heads * group, dim, dtype=F16, device=device)
        attend(*inputs, scale=0.1, out=out, buffers=buffers)
        assert torch.equal(out, attend(*inputs, scale=0.1))


def test_an_empty_batch(device) -> None:
    inputs = make_inputs([], [], 8, 2, 2, 64, F16)
    assert attend(*(a.to(device) for a in inputs), scale=1.0).shape == (0, 4, 64)


@pytest.mark.gpu
@pytest.mark.parametrize("dim", [64, 96, 128, 256])
@pytest.mark.parametrize("group", [1, 3, 4, 8, 16, 17, 64])
def test_triton_bfloat16(poison, dim, group) -> None:
    # On the GPU only: Triton's interpreter has no bfloat16.
    for k_max, rows in ((700, [700, 1, 129, 64]), (512, [512] * 150)):
        inputs = make_inputs(rows, rows, k_max, 2, group, dim, BF16)
        options = {"scale": dim**-0.5}
        out = poison(len(rows), 2 * group, dim, dtype=BF16, device="cuda")
        attend(*(a.cuda() for a in inputs), **options, out=out)
        assert_close(out, attend(*inputs, **options))


@pytest.mark.gpu
def test_slots_beyond_int32_elements(poison) -> None:
    slots = 2**31 // (8 * 256) + 100  # slots * heads * D passes 2**31
    local = torch.randint(0, 50, (1, 8, 90), dtype=torch.int32)
    q = torch.randn(1, 16, 256).bfloat16()
    small = [torch.randn(50, 8, 256).bfloat16() for _ in range(2)]
    pools = [torch.zeros(slots, 8, 256, dtype=BF16, device="cuda") for _ in range(2)]
    for pool, last in zip(pools, small, strict=True):
        pool[-50:] = last.cuda()
    sizes = (torch.tensor([90]), torch.tensor([90], dtype=torch.int32))
    out = poison(1, 16, 256, dtype=BF16, device="cuda")
    where = (a.cuda() for a in (local + slots - 50, *sizes))
    attend(q.cuda(), *pools, *where, scale=0.1, out=out)
    assert_close(out, softmax_attention(q, *small, local, *sizes, scale=0.1))


@pytest.mark.gpu
def test_a_captured_step_allocates_nothing_and_follows_the_lengths(poison) -> None:
    k_max = 300
    inputs = make_inputs([300] * 3, [300] * 3, k_max, 2, 4, 128, BF16)
    there = [a.cuda() for a in inputs]
    out = poison(3, 8, 128, dtype=BF16, device="cuda")
    buffers = AttendBuffers(16, 4, 128, k_max, "cuda")
    options = {"scale": 0.1, "out": out, "buffers": buffers}
    attend(*there, **options)
    graph = torch.cuda.CUDAGraph()
    allocations = []
    with torch.cuda.graph(graph):
        allocations.append(torch.cuda.memory_stats()["allocation.all.allocated"])
        attend(*there, **options)
        allocations.append(torch.cuda.memory_stats()["allocation.all.allocated"])
    assert allocations[0] == allocations[1]
    for lengths, budgets in (([1, 300, 64], [300, 300, 300]), ([900, 65, 128], [7, 300, 129])):
        inputs = (*inputs[:4], torch.tensor(lengths), torch.tensor(budgets, dtype=torch.int32))
        for tensor, values in zip(there[4:], inputs[4:], strict=True):
            tensor.copy_(values)
        out.fill_(float("nan"))
        graph.replay()
        assert_close(out, softmax_attention(*inputs, scale=0.1))


def good() -> dict:
    return {
        **queries_and_caches(),
        "slots": torch.zeros(2, 3, 200, dtype=torch.int32),
        "seq_lens": torch.tensor([5, 10]),
        "budgets": torch.tensor([8, 8], dtype=torch.int32),
        "scale": 1.0,
    }


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        *WRONG,
        ({"slots": torch.zeros(2, 2, 8).int()}, r"slots\.shape: expected \[2, 3, any\]"),
        ({"slots": torch.zeros(2, 3, 0).int()}, r"slots\.shape\[2\]: expected at least 1, found 0"),
        ({"slots": torch.zeros(2, 3, 8).long()}, r"slots\.dtype: expected torch\.int32"),
        ({"slots": torch.zeros(2, 3, 9).int()[..., :8]}, "slots strides"),
        ({"budgets": torch.tensor([5, 5])}, r"budgets\.dtype: expected torch\.int32"),
        ({"budgets": torch.ones(3).int()}, r"budgets\.shape: expected \[2\]"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(changed, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attend(**{**good(), **changed})


def test_reference_names_counts_that_do_not_fit() -> None:
    for length, budget in ((0, 8), (300, 201)):
        sizes = {"seq_lens": torch.tensor([1, length]), "budgets": torch.tensor([8, budget]).int()}
        with pytest.raises(ValueError, match="seq_lens and budgets: expected 1 to 200 "):
            attend(**{**good(), **sizes})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        *WRONG_TO_LAUNCH,
        ({"q": torch.zeros(2, 64, 6).half().transpose(1, 2)}, r"q\.stride\(\)\[1:\]: expected"),
        (
            {"buffers": lambda device: AttendBuffers(1, 2, 64, 200, device)},
            r"buffers\.partial: expected 3072 numbers, found 896",
        ),
        (
            {"buffers": AttendBuffers(6, 2, 64, 200, "meta")},
            r"buffers\.partial\.device: expected c\w+(:0)?, found meta",
        ),
    ],
    ids=["dtype", "group", "dim", "stride", "small-buffers", "device"],
)
def test_launches_name_what_only_the_reference_does(device, changed, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attend(**moved({**good(), **changed}, device))


@pytest.mark.parametrize("name", ["rows", "group", "dim", "k_max"])
def test_buffers_need_sizes(name: str) -> None:
    sizes = {"rows": 4, "group": 2, "dim": 64, "k_max": 100, name: 0}
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, found 0"):
        AttendBuffers(**sizes, device="cpu")
