"""Selections and the attention they keep, on small cases worked out by hand."""

import math

import pytest
import torch

from hata_kernels.encoders import LinearEncoder, dense_scores
from hata_sglang.training.attention_mass import (
    TopK,
    attention_mass,
    group_attention,
    select,
)


def kept(scores, position, budget):
    chosen = select(torch.tensor([[scores]]).float(), torch.tensor([position]), budget)[0, 0]
    # Unseen tokens fill the end.
    seen = chosen[: position + 1].tolist()
    assert all(token > position for token in chosen[position + 1 :])
    return sorted(seen)


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        pytest.param(TopK(2, 0, 0), [1, 3], id="best-two"),
        pytest.param(TopK(3, 1, 1), [0, 1, 5], id="sink-and-recent-count"),
        pytest.param(TopK(4, 0, 2), [1, 3, 4, 5], id="recent-ends-at-the-query"),
        pytest.param(TopK(100, 0, 0), [0, 1, 2, 3, 4, 5], id="budget-covers-the-context"),
    ],
)
def test_select_keeps_the_best_visible_tokens(budget, expected):
    # position 5 sees six tokens; the seventh has the highest score
    assert kept([1, 9, 2, 8, 0, 0, 99], 5, budget) == expected


def test_ties_go_to_the_earlier_token():
    assert kept([5, 3, 3, 3, 7], 4, TopK(3, 0, 0)) == [0, 1, 4]


def test_group_attention_averages_softmax_over_the_heads_that_share_a_kv_head():
    q = torch.tensor([[[1.0], [3.0]]])  # one query, two heads, D = 1
    k = torch.tensor([[[0.0]], [[1.0]], [[50.0]]])
    found = group_attention(q, k, torch.tensor([1]), 0.5)
    expected = sum(math.exp(0.5 * h) / (1 + math.exp(0.5 * h)) for h in (1, 3)) / 2
    assert found.shape == (1, 1, 3)
    assert found[0, 0].tolist() == pytest.approx([1 - expected, expected, 0.0])


def test_attention_mass_adds_up_what_is_selected():
    probabilities = torch.tensor([[[0.5, 0.3, 0.2]]])
    selected = torch.tensor([[[2, 0]]])
    assert float(attention_mass(probabilities, selected)) == pytest.approx(0.7)


def test_exact_top_k_is_the_ceiling_and_full_bits_come_near():
    torch.manual_seed(0)
    q, k = torch.randn(5, 4, 32) * 2, torch.randn(200, 2, 32)
    positions = torch.tensor([150, 160, 170, 180, 199])
    attention = group_attention(q, k, positions, 1.0)
    budget = TopK(20, 2, 2)

    def codes(bits):
        tensors = {"weight": torch.randn(2, 32, bits)}
        random = LinearEncoder.from_tensors(tensors, num_kv_heads=2, group=2, head_dim=32)
        return dense_scores(random, q, k, positions)

    def mass(scores):
        return float(attention_mass(attention, select(scores, positions, budget)).mean())

    exact, many_bits, few_bits = (
        mass(attention),
        mass(codes(2048)),
        mass(codes(32)),
    )
    assert exact > many_bits > few_bits
