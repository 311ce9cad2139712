"""The mean of the values left out, mixed into attention over selections: against float64."""

from __future__ import annotations

import pytest
import torch

from attend_cases import BF16, BOUNDS, F16, F32, softmax_attention
from hata_kernels.attend import RATIOS, LeftOut, attend, gather

SLOTS, REQUESTS = 900, 9

# Lengths, budgets, k_max, KV heads, group, head size
SPLITS = [
    pytest.param(64, 1, id="one-part"),
    pytest.param(16, 528, id="parts"),
]
CASES = [
    pytest.param([400, 7, 400, 64], [63, 9, 65, 64], 65, 1, 3, 96, id="around-a-block-G3-D96"),
    pytest.param([300, 900], [130, 2], 300, 2, 7, 128, id="ratios-G7-D128"),
    pytest.param([500], [40], 50, 3, 1, 64, id="G1"),
    pytest.param([300, 800], [90, 129], 300, 1, 16, 64, id="G16"),
    pytest.param([80, 500], [79, 3], 90, 1, 20, 256, id="G20-D256"),
]


def set_blocks(monkeypatch, block: int, programs: int) -> None:
    """Let programs have blocks of one size, and so many of them run at once."""
    monkeypatch.setattr(gather, "BLOCKS", (block, block))
    monkeypatch.setattr(gather, "IN_FLIGHT", block * programs)


def make_step(lengths, budgets, k_max, kv_heads, group, dim, dtype):
    """Selections in position order of contexts of their own, and what belongs to the mean.

    Returns
    -------
    inputs : tuple
        Of `attend`.
    left_out : LeftOut
        Sums without the newest tokens; NaN for requests that no row is of.
    sums : torch.Tensor
        float64: what the sums become, with the newest tokens.
    """
    batch = len(lengths)
    q = torch.randn(batch, group * kv_heads, dim).to(dtype)
    caches = [torch.randn(SLOTS, kv_heads, dim).to(dtype) for _ in range(2)]
    caches[1] += 1  # values have a mean
    slots = torch.full((batch, kv_heads, k_max), -1, dtype=torch.int32)
    rows = torch.randperm(REQUESTS)[:batch].int()
    before, sums = (torch.full((REQUESTS, kv_heads, dim), torch.nan) for _ in range(2))
    sums = sums.double()
    for b, (length, budget) in enumerate(zip(lengths, budgets, strict=True)):
        tokens = torch.randperm(SLOTS - 1)[:length] + 1
        for h in range(kv_heads):
            others = torch.randperm(length - 1)[: min(length, budget) - 1].sort().values
            chosen = torch.cat([tokens[others], tokens[-1:]])
            slots[b, h, : len(chosen)] = chosen.int()
        values = caches[1][tokens].double()
        before[rows[b]], sums[rows[b]] = values[:-1].sum(0).float(), values.sum(0)
    weights = torch.rand(group * kv_heads, RATIOS)
    weights[:, 0] = 0
    sizes = (torch.tensor(lengths), torch.tensor(budgets, dtype=torch.int32))
    return (q, *caches, slots, *sizes), LeftOut(before, rows, weights), sums


def mixed_attention(inputs, left_out, sums, scale):
    """The definition in float64, one query head at a time."""
    q, _, v_cache, slots, seq_lens, budgets = inputs
    out = softmax_attention(*inputs, scale=scale)
    group = q.shape[1] // v_cache.shape[1]
    for b, (length, budget) in enumerate(zip(seq_lens.tolist(), budgets.tolist(), strict=True)):
        if length <= budget:
            continue
        place = min(torch.tensor(length / budget).double().log2().item(), RATIOS - 1)
        low = min(int(place), RATIOS - 2)
        for head in range(q.shape[1]):
            kept = v_cache[slots[b, head // group, :budget].long(), head // group].double()
            mean = (sums[left_out.rows[b], head // group] - kept.sum(0)) / (length - budget)
            first, second = left_out.weights[head, low : low + 2].double()
            share = first + (second - first) * (place - low)
            out[b, head] += share * (mean - out[b, head])
    return out


def assert_mixed(out, expected, left_out, sums, device="cpu"):
    """Outputs as near as rounding of the dtype lets them, sums as float32's."""
    assert (out.cpu().double() - expected).norm() <= expected.norm() * BOUNDS[out.dtype]
    real = left_out.rows.long().cpu()
    found = left_out.sums.cpu().double()
    torch.testing.assert_close(found[real], sums[real], rtol=1e-4, atol=1e-3)
    others = [row for row in range(REQUESTS) if row not in real.tolist()]
    assert found[others].isnan().all()


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize(("lengths", "budgets", "k_max", "kv_heads", "group", "dim"), CASES[:3])
def test_reference(lengths, budgets, k_max, kv_heads, group, dim, dtype) -> None:
    sizes = (lengths, budgets, k_max, kv_heads, group, dim)
    inputs, left_out, sums = make_step(*sizes, dtype)
    out = attend(*inputs, scale=0.1, left_out=left_out)
    assert_mixed(out, mixed_attention(inputs, left_out, sums, 0.1), left_out, sums)


@pytest.mark.parametrize(("block", "programs"), SPLITS)
@pytest.mark.parametrize(("lengths", "budgets", "k_max", "kv_heads", "group", "dim"), CASES)
def test_triton(
    device, monkeypatch, poison, lengths, budgets, k_max, kv_heads, group, dim, block, programs
) -> None:
    set_blocks(monkeypatch, block, programs)
    sizes = (lengths, budgets, k_max, kv_heads, group, dim)
    inputs, left_out, sums = make_step(*sizes, F16)
    expected = mixed_attention(inputs, left_out, sums, 2 / dim**0.5)
    there = LeftOut(*(tensor.to(device) for tensor in left_out))
    out = poison(len(lengths), kv_heads * group, dim, dtype=F16, device=device)
    attend(*(a.to(device) for a in inputs), scale=2 / dim**0.5, out=out, left_out=there)
    assert_mixed(out, expected, there, sums)


@pytest.mark.parametrize("programs", [1, 528], ids=["one-part", "parts"])
def test_a_row_of_padding_changes_no_sum(device, monkeypatch, programs) -> None:
    set_blocks(monkeypatch, 16, programs)
    inputs, left_out, sums = make_step([300, 1], [40, 40], 40, 2, 2, 64, F16)
    inputs[3][1] = 0
    # Padding names request 0, which may be one that is served, in this batch or not.
    left_out.sums[0] = sums[0] = 5
    rows = torch.tensor([left_out.rows[0] or 1, 0], dtype=torch.int32)
    left_out.sums[rows[0]], sums[rows[0]] = left_out.sums[left_out.rows[0]], sums[left_out.rows[0]]
    there = LeftOut(left_out.sums.to(device), rows.to(device), left_out.weights.to(device))
    attend(*(a.to(device) for a in inputs), scale=0.1, left_out=there)
    found = there.sums.cpu()
    assert (found[0] == 5).all()
    torch.testing.assert_close(found[rows[0]].double(), sums[rows[0]], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("programs", [1, 528], ids=["one-part", "parts"])
def test_a_selection_of_everything_is_attention_bit_for_bit(device, monkeypatch, programs) -> None:
    set_blocks(monkeypatch, 16, programs)
    inputs, left_out, _ = make_step([40, 7], [40, 60], 40, 2, 2, 64, F16)
    there = LeftOut(*(tensor.to(device) for tensor in left_out))
    there.weights.fill_(0.7)
    inputs = [a.to(device) for a in inputs]
    out = attend(*inputs, scale=0.1, left_out=there)
    assert torch.equal(out, attend(*inputs, scale=0.1))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("sums", torch.zeros(4, 2, 64).half(), r"left_out\.sums\.dtype"),
        ("sums", torch.zeros(4, 3, 64), r"left_out\.sums\.shape: expected \[any, 2, 64\]"),
        ("rows", torch.zeros(3).int(), r"left_out\.rows\.shape: expected \[1\]"),
        ("weights", torch.zeros(4, 7), r"left_out\.weights\.shape: expected \[4, 8\]"),
        ("weights", torch.zeros(8, 4).T, "left_out.weights strides"),
    ],
)
def test_wrong_arguments_are_named(field, value, message) -> None:
    inputs, left_out, _ = make_step([30], [3], 3, 2, 2, 64, F16)
    with pytest.raises(ValueError, match=message):
        attend(*inputs, scale=0.1, left_out=left_out._replace(**{field: value}))
