"""Losses against numbers worked out by hand."""

import math

import pytest
import torch

from hata_sglang.methods.learning.loss import (
    PaperLoss,
    attention_loss,
    paper_loss,
    similarity_labels,
    straight_through_sign,
)


def test_labels_fall_from_20_to_1_over_the_best_tenth():
    scores = torch.arange(40.0)
    valid = torch.arange(40) < 30
    labels = similarity_labels(scores, valid, PaperLoss())
    # 30 visible keys: the best three are 29, 28 and 27
    assert labels[29] == 20
    assert labels[28] == pytest.approx(10.5)
    assert labels[27] == 1
    assert (labels[:27] == -1).all()
    assert (labels[30:] == 0).all()


def test_paper_loss_equals_its_formula_on_two_keys_and_two_bits():
    constants = PaperLoss(epsilon=0.5, balance=3.0, decorrelation=0.25, sigma=0.7)
    q, keys, w = 1.5, (2.0, -0.5), (0.8, -1.2)
    labels = (20.0, -1.0)

    def h(x):
        return 2 / (1 + math.exp(-0.7 * x)) - 1

    distances = [sum((h(q * b) - h(key * b)) ** 2 for b in w) for key in keys]
    similarity = sum(s * d for s, d in zip(labels, distances, strict=True)) / 2
    balance = sum(((h(keys[0] * b) + h(keys[1] * b)) / 2 / 2) ** 2 for b in w)
    gram = [[w[i] * w[j] - (i == j) for j in range(2)] for i in range(2)]
    decorrelation = math.sqrt(sum(x * x for row in gram for x in row))
    expected = 0.5 * similarity + 3.0 * balance + 0.25 * decorrelation

    found = paper_loss(
        torch.tensor([[[[q]]]]),
        torch.tensor([[[k] for k in keys]]),
        torch.tensor([[[labels]]]),
        torch.tensor([[w]]),
        constants,
    )
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_paper_loss_adds_up_over_kv_heads_and_heads_of_a_group():
    torch.manual_seed(0)
    q, k = torch.randn(2, 3, 2, 4), torch.randn(2, 5, 4)
    labels, weight = torch.randn(2, 3, 2, 5), torch.randn(2, 4, 32)
    no_extras = PaperLoss(balance=0.0, decorrelation=0.0)
    whole = paper_loss(q, k, labels, weight, no_extras)
    parts = [
        paper_loss(
            q[h : h + 1, :, g : g + 1],
            k[h : h + 1],
            labels[h : h + 1, :, g : g + 1],
            weight[h : h + 1],
            no_extras,
        )
        for h in range(2)
        for g in range(2)
    ]
    assert float(whole) == pytest.approx(float(sum(parts)), rel=1e-4)


def test_sign_passes_the_gradient_of_tanh():
    x = torch.tensor([-0.5, 0.0, 2.0], requires_grad=True)
    y = straight_through_sign(x)
    assert y.tolist() == [-1, -1, 1]  # a projection of exactly 0 is bit 0, as in the kernels
    y.sum().backward()
    assert x.grad.tolist() == pytest.approx([1 - math.tanh(v) ** 2 for v in (-0.5, 0.0, 2.0)])


def test_attention_loss_is_cross_entropy_with_the_softmax_of_code_scores():
    # one head, two bits; codes: q (+,+), keys (+,+), (+,-), (-,-) score 1, 0, -1
    q = torch.tensor([[[[1.0, 2.0]]]])
    k = torch.tensor([[[1.0, 1.0], [3.0, -1.0], [-1.0, -2.0]]])
    attention = torch.tensor([[[0.6, 0.3, 0.0]]])
    temperature = 1.7
    exponentials = [math.exp(temperature * s) for s in (1, 0)]
    logs = [math.log(e / sum(exponentials)) for e in exponentials]
    found = attention_loss(
        q,
        k,
        attention,
        torch.tensor([[True, True, False]]),
        torch.eye(2)[None],
        torch.tensor(1.0),
        torch.tensor([[[math.log(temperature)]]]),
    )
    assert float(found) == pytest.approx(-(0.6 * logs[0] + 0.3 * logs[1]), rel=1e-5)


def test_attention_loss_sums_votes_over_the_group():
    # two heads that disagree on the second bit: it counts for nothing
    q = torch.tensor([[[[1.0, 1.0], [1.0, -1.0]]]])
    k = torch.tensor([[[1.0, 1.0], [1.0, -1.0]]])
    found = attention_loss(
        q,
        k,
        torch.tensor([[[0.5, 0.5]]]),
        torch.ones(1, 2, dtype=torch.bool),
        torch.eye(2)[None],
        torch.tensor(1.0),
        torch.zeros(1, 1, 1),
    )
    assert float(found) == pytest.approx(math.log(2), rel=1e-5)
