"""The mean of the values left out, mixed into attention over selections: against float64."""

from __future__ import annotations

import pytest
import torch

from attend_cases import BF16, BOUNDS, F16, F32, softmax_attention
from hata_kernels.attend import RATIOS, LeftOut, attend

SLOTS, REQUESTS = 900, 9

# Lengths, budgets, k_max, KV heads, group, head size
CASES = [
    pytest.param([400, 7, 400, 64], [63, 9, 65, 64], 65, 1, 3, 96, id="around-a-block-G3-D96"),
    pytest.param([300, 900], [130, 2], 300, 2, 7, 128, id="ratios-G7-D128"),
    pytest.param([500], [40], 50, 3, 1, 64, id="G1"),
    pytest.param([300, 800], [90, 129], 300, 1, 16, 64, id="G16"),
    pytest.param([80, 500], [79, 3], 90, 1, 20, 256, id="G20-D256"),
]


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


def test_a_row_of_padding_changes_no_sum() -> None:
    inputs, left_out, sums = make_step([300, 5], [30, 30], 30, 2, 2, 64, F16)
    left_out = left_out._replace(rows=left_out.rows[[0, 0]])
    slots = inputs[3]
    slots[1] = 0
    attend(*inputs, scale=0.1, left_out=left_out)
    real = left_out.rows[0].long()
    torch.testing.assert_close(left_out.sums[real].double(), sums[real], rtol=1e-4, atol=1e-3)


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
