"""Selection: PyTorch's top-k against sorting, FlashInfer by its values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hata_kernels.select import select, select_streaming

SLOTS = 3000

# lengths, width, KV heads, highest score, budgets
CASES = [
    pytest.param([1], 1, 3, 5, [1], id="ctx1-width1"),
    pytest.param([1, 700], 700, 2, 385, [256, 256], id="shorter-than-budget"),
    pytest.param([256, 257], 300, 1, 385, [256, 256], id="at-the-budget"),
    pytest.param([600, 64, 599], 600, 3, 385, [10, 64, 150], id="budget-per-request"),
    pytest.param([500], 512, 2, 0, [33], id="all-equal"),
    pytest.param([500, 400], 512, 2, 1, [33, 399], id="two-values"),
    pytest.param([2000], 2047, 1, 2048, [1], id="budget-1-many-levels"),
    pytest.param([2000, 1999], 2047, 1, 2048, [700, 1001], id="many-chunks-many-levels"),
]


def brute_force(scores, token_slots, lengths, budgets, k_max) -> torch.Tensor:
    """Sort by falling score, then by position; report in position order."""
    batch, kv_heads, _ = scores.shape
    result = torch.full((batch, kv_heads, k_max), -1, dtype=torch.int32)
    for b in range(batch):
        for h in range(kv_heads):
            ranked = sorted(range(lengths[b]), key=lambda t: (-float(scores[b, h, t]), t))
            kept = sorted(ranked[: budgets[b]])
            for place, t in enumerate(kept):
                result[b, h, place] = token_slots[b, t]
    return result


def make_scores(lengths, width, kv_heads, highest, dtype=torch.float16) -> torch.Tensor:
    """Integer scores with many ties; NaN beyond the lengths."""
    centre = highest * 0.6 + highest * 0.05 * torch.randn(len(lengths), kv_heads, width)
    scores = centre.round().clamp(0, highest).to(dtype)
    for b, length in enumerate(lengths):
        scores[b, :, length:] = float("nan")
    return scores


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("lengths", "width", "kv_heads", "highest", "budgets"), CASES)
def test_the_best_in_position_order(
    any_device, make_token_slots, dtype, lengths, width, kv_heads, highest, budgets
) -> None:
    scores = make_scores(lengths, width, kv_heads, highest, dtype)
    token_slots = make_token_slots(lengths, width + 3, SLOTS)
    arguments = (scores, token_slots, torch.tensor(lengths), torch.tensor(budgets).int())
    moved = tuple(a.to(any_device) for a in arguments)
    for k_max in (max(budgets), max(budgets) + 2, width + 5):
        expected = brute_force(scores, token_slots, lengths, budgets, k_max)
        assert torch.equal(select(*moved, k_max=k_max).cpu(), expected)


@given(
    st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=40), min_size=1, max_size=3),
    st.lists(st.integers(1, 45), min_size=3, max_size=3),
    st.sampled_from([torch.float16, torch.float32]),
)
def test_keeps_exactly_the_budget_and_breaks_ties_by_position(rows, budgets, dtype) -> None:
    lengths, width = [len(row) for row in rows], max(len(row) for row in rows)
    scores = torch.full((len(rows), 1, width), float("nan"))
    for b, row in enumerate(rows):
        scores[b, 0, : len(row)] = torch.tensor(row)
    scores = scores.to(dtype)
    token_slots = torch.arange(len(rows) * width, dtype=torch.int32).view(len(rows), width)
    keep = budgets[: len(rows)]
    out = select(
        scores, token_slots, torch.tensor(lengths), torch.tensor(keep, dtype=torch.int32), k_max=45
    )
    assert torch.equal(out, brute_force(scores, token_slots, lengths, keep, 45))
    assert (out >= 0).sum(-1).flatten().tolist() == list(map(min, lengths, keep))


def test_one_budget_for_all(make_token_slots) -> None:
    scores = torch.rand(2, 3, 400) * 1e-3
    scores[:, :, :5] = scores[:, :, 380:] = float("inf")
    scores[:, :, 100:200] = scores[:, :, 100:101]
    token_slots = make_token_slots([400, 390], 400, SLOTS)
    for k_max in (8, 25, 64):
        out = select(scores, token_slots, torch.tensor([400, 390]), k_max, k_max=k_max)
        expected = brute_force(scores, token_slots, [400, 390], [k_max] * 2, k_max)
        assert torch.equal(out, expected)


def test_the_result_does_not_depend_on_the_other_rows(make_token_slots) -> None:
    lengths = [300, 900, 5]
    scores = make_scores(lengths, 900, 2, 385)
    token_slots = make_token_slots(lengths, 900, SLOTS)
    together = select(scores, token_slots, torch.tensor(lengths), 64, k_max=64)
    for b, length in enumerate(lengths):
        alone = select(
            scores[b : b + 1, :, :length].contiguous(),
            token_slots[b : b + 1, :length],
            torch.tensor([length]),
            64,
            k_max=64,
        )
        assert torch.equal(alone[0], together[b])


@pytest.mark.gpu
@pytest.mark.parametrize("k_max", [1, 256, 2048])
@pytest.mark.parametrize("width", [300, 6000, 40000])
def test_flashinfer_keeps_the_best_scores(make_token_slots, width, k_max) -> None:
    lengths = [width, 1, width // 2, min(width, k_max)]
    scores = make_scores(lengths, width, 8, 513)
    token_slots = make_token_slots(lengths, width, width + 1)
    cuda = [a.cuda() for a in (scores, token_slots, torch.tensor(lengths))]
    assert_best_scores(select(*cuda, k_max, k_max=k_max), scores, token_slots, lengths)


def assert_best_scores(selected, scores, token_slots, lengths) -> None:
    """By value, never by index: every returned slot is distinct and no left-out score is better."""
    selected = selected.cpu()
    for b, length in enumerate(lengths):
        place = {slot: t for t, slot in enumerate(token_slots[b, :length].tolist())}
        count = min(length, selected.shape[2])
        for h in range(selected.shape[1]):
            slots = selected[b, h].tolist()
            assert slots[count:] == [-1] * (len(slots) - count)
            chosen = [place[slot] for slot in slots[:count]]
            assert len(set(chosen)) == count
            if length <= selected.shape[2]:
                assert chosen == list(range(length))
            best = scores[b, h, :length].float().topk(count).values
            found = scores[b, h, chosen].float().sort(descending=True).values
            assert torch.equal(best, found)


@pytest.mark.gpu
def test_topk_and_streaming_replay_with_other_lengths(make_token_slots) -> None:
    scores = make_scores([900, 900], 900, 2, 400, torch.float32)
    table = make_token_slots([900, 900], 900, SLOTS)
    lengths = torch.tensor([900, 900], device="cuda")
    budgets = torch.tensor([100, 100], dtype=torch.int32, device="cuda")
    inputs = (scores.cuda(), table.cuda(), lengths, budgets)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        select(*inputs, k_max=100)
        select_streaming(*inputs[1:], kv_heads=2, k_max=100, sink=4)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        best = select(*inputs, k_max=100)
        ends = select_streaming(*inputs[1:], kv_heads=2, k_max=100, sink=4)
    for new_lengths, new_budgets in (([900, 40], [3, 100]), ([5, 101], [100, 100])):
        lengths.copy_(torch.tensor(new_lengths))
        budgets.copy_(torch.tensor(new_budgets))
        graph.replay()
        host = tuple(a.cpu() for a in inputs)
        assert torch.equal(best.cpu(), select(*host, k_max=100))
        assert torch.equal(ends.cpu(), select_streaming(*host[1:], kv_heads=2, k_max=100, sink=4))


def test_ranks_real_valued_scores_and_infinities(any_device, make_token_slots) -> None:
    lengths = [400, 390, 20]
    scores = torch.rand(3, 3, 400) ** 8
    scores[:, :, :5] = scores[:, :, 380:] = float("inf")
    scores[:, :, 100:200] = scores[:, :, 100:101]
    scores[:, :, 200:250] = 0
    for b, garbage in enumerate((0.0, float("inf"), float("nan"))):
        scores[b, :, lengths[b] :] = garbage
    token_slots = make_token_slots(lengths, 400, SLOTS)
    arguments = (scores, token_slots, torch.tensor(lengths, dtype=torch.int32))
    budgets = torch.tensor([25, 399, 64], dtype=torch.int32)
    out = select(*(a.to(any_device) for a in (*arguments, budgets)), k_max=399)
    expected = brute_force(scores, token_slots, lengths, budgets.tolist(), 399)
    assert torch.equal(out.cpu(), expected)


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=4),
    st.lists(st.integers(1, 40), min_size=4, max_size=4),
    st.integers(0, 45),
    st.sampled_from([torch.int32, torch.int64]),
)
def test_streaming_keeps_the_first_and_the_last(lengths, budgets, sink, length_dtype) -> None:
    width = max(lengths) + 2
    # Garbage after the lengths, as in a page table.
    table = torch.full((len(lengths), width), -5, dtype=torch.int32)
    for b, length in enumerate(lengths):
        table[b, :length] = 1000 * b + torch.arange(length, dtype=torch.int32)
    k_max, keep = 40, budgets[: len(lengths)]
    out = select_streaming(
        table,
        torch.tensor(lengths, dtype=length_dtype),
        torch.tensor(keep, dtype=torch.int32),
        kv_heads=3,
        k_max=k_max,
        sink=sink,
    )
    assert out.is_contiguous()
    for b, (length, budget) in enumerate(zip(lengths, keep, strict=True)):
        tokens = list(range(length))
        if length > budget:
            first = min(sink, budget)
            tokens = tokens[:first] + tokens[length - (budget - first) :]
        expected = [1000 * b + token for token in tokens] + [-1] * (k_max - len(tokens))
        assert out[b].tolist() == [expected] * 3


STREAM = {
    "token_slots": torch.zeros(2, 10, dtype=torch.int32),
    "seq_lens": torch.tensor([5, 10]),
    "budgets": torch.tensor([4, 4], dtype=torch.int32),
    "kv_heads": 3,
    "k_max": 4,
    "sink": 2,
}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"token_slots": STREAM["token_slots"].long()}, r"token_slots\.dtype"),
        ({"seq_lens": torch.tensor([5])}, r"seq_lens\.shape: expected \[2\], found \[1\]"),
        ({"budgets": torch.tensor([4, 4])}, r"budgets\.dtype: expected torch\.int32"),
        ({"sink": -1}, "sink: expected at least 0, found -1"),
        ({"kv_heads": 0}, "kv_heads: expected at least 1, found 0"),
        ({"k_max": 0}, "k_max: expected at least 1, found 0"),
    ],
    ids=["slots", "lengths", "budget", "sink", "heads", "k"],
)
def test_streaming_names_wrong_arguments(changed, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select_streaming(**{**STREAM, **changed})


GOOD = {
    "scores": torch.zeros(2, 3, 10),
    "token_slots": torch.zeros(2, 10, dtype=torch.int32),
    "seq_lens": torch.tensor([5, 10]),
    "budgets": 4,
    "k_max": 4,
}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"k_max": 0, "budgets": 0}, "k_max: expected at least 1, found 0"),
        ({"budgets": 3}, "budgets: expected k_max = 4, found 3"),
        ({"budgets": torch.tensor([4, 5], dtype=torch.int32)}, r"budgets: expected 1 to 4, found"),
        ({"budgets": torch.tensor([4, 0], dtype=torch.int32)}, r"budgets: expected 1 to 4, found"),
        ({"budgets": torch.tensor([4, 4])}, r"budgets\.dtype: expected torch\.int32"),
        ({"scores": GOOD["scores"].double()}, r"scores\.dtype"),
        ({"scores": torch.zeros(2, 3, 11)}, "= 11, found 10"),
        ({"seq_lens": torch.tensor([5, 11])}, "seq_lens: expected 1 to 10"),
        ({"seq_lens": torch.tensor([5, 1, 9, 1])[::2]}, "seq_lens strides: expected a contiguous"),
        ({"budgets": torch.ones(4).int()[::2]}, "budgets strides: expected a contiguous tensor"),
    ],
    ids=[
        "k0",
        "int-budget",
        "high",
        "zero",
        "int64",
        "dtype",
        "width",
        "length",
        "strided-lens",
        "strided-budgets",
    ],
)
def test_wrong_arguments_are_named(changed, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select(**{**GOOD, **changed})
