"""Selectors and what their selections are worth, on small cases worked out by hand."""

import argparse

import pytest
import torch

from hata_kernels.attend import RATIOS, left_out_weight
from hata_kernels.encoders import LinearEncoder, dense_scores
from hata_sglang.evaluation.selection_quality import Judge
from hata_sglang.evaluation.selector_list import coded, loki_channels, selector_name
from hata_sglang.evaluation.selectors import (
    AttentionCase,
    KeyStatistics,
    exact,
    exact_per_head,
    loki,
    quest,
    quest_bounds,
    streaming,
)
from hata_sglang.training.attention_mass import TopK, group_attention, select


def random_case(*, length=100, queries=5, kv_heads=2, group=3, dim=16, seed=0):
    dice = torch.Generator().manual_seed(seed)
    q = torch.randn(queries, kv_heads * group, dim, generator=dice) * 2
    k = torch.randn(length, kv_heads, dim, generator=dice)
    v = torch.randn(length, kv_heads, dim, generator=dice)
    positions = torch.linspace(length // 2, length - 1, queries).long()
    return AttentionCase(0, q, k, v, positions, 0.7)


def line(keys, position):
    """One head with D = 1, whose query is 1: logits are the keys."""
    k = torch.tensor(keys).float().view(-1, 1, 1)
    return AttentionCase(0, torch.ones(1, 1, 1), k, k, torch.tensor([position]), 1.0)


def kept(case, scores, k, sink=0, recent=0):
    return sorted(select(scores, case.positions, TopK(k, sink, recent))[0, 0].tolist())


def by_hand(scores, case, k, sink, recent):
    """The k best tokens of every head and query, by Python's sort: bool ``[R, N, S]``."""
    found = torch.zeros(scores.shape, dtype=torch.bool)
    for head, of_head in enumerate(scores.tolist()):
        for row, own in enumerate(of_head):
            last = int(case.positions[row])
            forced = {*range(sink), *range(last - recent + 1, last + 1)}
            ranked = sorted(range(last + 1), key=lambda t: (t not in forced, -own[t], t))
            found[head, row, ranked[:k]] = True
    return found


def test_exact_is_the_attention_that_the_heads_of_a_group_average_to():
    case = random_case()
    expected = group_attention(case.q, case.k, case.positions, case.scale)
    torch.testing.assert_close(exact(case), expected)
    own = exact_per_head(case).softmax(-1).unflatten(0, (2, 3)).mean(1)
    torch.testing.assert_close(own, expected)


@pytest.mark.parametrize("page", [1, 7, 16, 32])
def test_quest_bounds_every_product_of_a_page(page):
    case = random_case()
    bounds = quest_bounds(case, page).repeat_interleave(page, dim=-1)[..., :100]
    products = torch.einsum("hgnd,shd->hgns", case.grouped * case.scale, case.k)
    assert (bounds >= products - 1e-5).all()
    if page == 1:
        torch.testing.assert_close(bounds, products)
    else:
        assert (bounds > products + 0.1).any()


def test_quest_bound_adds_up_the_larger_product_per_channel():
    k = torch.tensor([[1.0, -2.0], [-3.0, 4.0]]).unsqueeze(1)
    q = torch.tensor([[[2.0, -1.0]]])
    case = AttentionCase(0, q, k, k, torch.tensor([1]), 0.5)
    assert quest_bounds(case, 2).item() == 0.5 * (2 * 1 + -1 * -2)


def test_quest_takes_whole_pages_and_part_of_one_more_in_order():
    # pages of 4: the best token is alone in the second, good ones are in the first
    case = line([5, 5, 5, 5, 0, 9, 0, 0, 1, 1, 1, 1, 0, 0], 13)
    scores = quest(case, 4)
    # the current page, 12 and 13, comes first; then the second page; then part of the first
    assert kept(case, scores, 6) == [4, 5, 6, 7, 12, 13]
    assert kept(case, scores, 8) == [0, 1, 4, 5, 6, 7, 12, 13]
    # sink and recent tokens count, also those in front of the current page
    assert kept(case, scores, 8, sink=1, recent=3) == [0, 4, 5, 6, 7, 11, 12, 13]


def test_quest_does_not_see_behind_the_query():
    keys = [1, 1, 2, 2, 3, 3, 0, 0]
    case = line([*keys, 99, 99], 5)
    scores = quest(case, 4)
    assert kept(case, scores, 4) == [0, 1, 4, 5]
    # what comes later on the query's own page does not change the others
    changed = quest(line([*keys[:6], 50, 50, 99, 99], 5), 4)
    assert torch.equal(scores[..., :6], changed[..., :6])


def test_sink_and_recent_come_before_quests_current_page():
    case = line([0] * 12, 11)
    # the current page is 8 to 11, and only one more token fits
    assert kept(case, quest(case, 4), 4, sink=2, recent=1) == [0, 1, 8, 11]


def test_streaming_is_sink_and_the_last():
    case = line([9, 9, 9, 9, 9, 9, 0, 0], 7)
    assert kept(case, streaming(case), 4, sink=1, recent=1) == [0, 5, 6, 7]


def statistics_of(*keys):
    statistics = KeyStatistics()
    for part in keys:
        statistics.add(0, part)
    return statistics


def test_loki_with_all_channels_orders_tokens_as_exact_scores_do():
    case = random_case()
    basis = statistics_of(case.k).basis(0, 16)
    torch.testing.assert_close(basis.mT @ basis, torch.eye(16).expand(2, 16, 16))
    torch.testing.assert_close(loki(case, basis), exact(case), rtol=1e-3, atol=1e-6)
    assert not torch.allclose(loki(case, basis[..., :4]), exact(case), rtol=0.1)


def test_key_statistics_find_the_directions_of_largest_variance_around_the_mean():
    dice = torch.Generator().manual_seed(0)
    spread = torch.tensor([0.1, 3.0, 1.0, 0.2])
    k = torch.randn(500, 2, 4, generator=dice) * spread
    k[..., 0] += 50  # a large mean is no variance
    basis = statistics_of(k[:100], k[100:]).basis(0, 2)
    expected = torch.zeros(4, 2)
    expected[1, 0] = expected[2, 1] = 1.0
    torch.testing.assert_close(basis.abs(), expected.expand(2, 4, 2), rtol=0, atol=0.05)


def test_codes_are_ranked_by_what_serving_ranks_by():
    case = random_case()
    tensors = {"weight": torch.randn(2, 16, 64, generator=torch.Generator().manual_seed(1))}
    encoder = LinearEncoder.from_tensors(tensors, num_kv_heads=2, group=3, head_dim=16)
    selector = coded("mine", "random", {0: encoder}, torch.device("cpu"))
    assert selector.bits == "64"
    assert torch.equal(selector.scores(case), dense_scores(encoder, case.q, case.k, case.positions))


@pytest.mark.parametrize("levels", [3, 1000], ids=["many-ties", "few-ties"])
def test_the_judge_measures_the_best_tokens(levels):
    case = random_case()
    scores = torch.randint(levels, (2, 5, 100), generator=torch.Generator().manual_seed(1)).float()
    budgets = [12, 30]
    judge = Judge(case, 4, 3, [torch.full((5,), k) for k in budgets])
    attention = exact(case)
    for k, quality in zip(budgets, judge.judge(scores), strict=True):
        expected = by_hand(scores, case, k, 4, 3)
        mass = (attention * expected).sum(-1)
        torch.testing.assert_close(quality.mass, mass.mean(1))
        best = by_hand(attention, case, k, 4, 3)
        ceiling = (attention * best).sum(-1).mean(1)
        torch.testing.assert_close(quality.relative_mass, mass.mean(1) / ceiling)
        # seven tokens are sink or recent
        recall = ((expected & best).sum(-1).float().mean(1) - 7) / (k - 7)
        torch.testing.assert_close(quality.recall, recall)


def test_output_error_compares_attention_over_the_kept_with_attention_over_all():
    case = random_case(kv_heads=1, group=2, queries=3)
    (quality,) = Judge(case, 2, 2, [torch.full((3,), 10)]).judge(streaming(case))
    errors = []
    for row, position in enumerate(case.positions.tolist()):
        tokens = [0, 1, *range(position - 7, position + 1)]
        for head in range(2):
            logits = case.k[: position + 1, 0] @ case.q[row, head] * case.scale
            full = logits.softmax(0) @ case.v[: position + 1, 0]
            sparse = logits[tokens].softmax(0) @ case.v[tokens, 0]
            errors.append((sparse - full).norm() / full.norm())
    torch.testing.assert_close(quality.output_error, torch.stack(errors).mean().view(1))


def test_output_with_the_mean_of_the_values_left_out():
    case = random_case(queries=3)
    weights = torch.linspace(0, 0.9, RATIOS).repeat(6, 1) * torch.rand(6, 1)
    budgets = [torch.full((3,), 10), case.positions + 1]
    some, none_left = Judge(case, 2, 2, budgets).judge(streaming(case), weights)
    plain, _ = Judge(case, 2, 2, budgets).judge(streaming(case))
    assert all(torch.equal(getattr(some, n), getattr(plain, n)) for n in ("mass", "recall"))
    torch.testing.assert_close(none_left.output_error, torch.zeros(2), rtol=0, atol=1e-5)
    errors = torch.zeros(2, 3, 3)
    for row, position in enumerate(case.positions.tolist()):
        tokens = [0, 1, *range(position - 7, position + 1)]
        rest = range(2, position - 7)
        share = left_out_weight(weights, torch.tensor([position + 1]), torch.tensor([10]))[0]
        for head in range(6):
            values = case.v[:, head // 3]
            logits = case.k[: position + 1, head // 3] @ case.q[row, head] * case.scale
            full = logits.softmax(0) @ values[: position + 1]
            sparse = logits[tokens].softmax(0) @ values[tokens]
            sparse += share[head] * (values[list(rest)].mean(0) - sparse)
            errors[head // 3, head % 3, row] = (sparse - full).norm() / full.norm()
    torch.testing.assert_close(some.output_error, errors.mean((1, 2)))


def test_exact_reaches_the_ceiling_and_heads_of_their_own_go_beyond():
    case = random_case()
    judge = Judge(case, 2, 2, [torch.full((5,), 12)])
    (best,), (own,) = judge.judge(exact(case)), judge.judge(exact_per_head(case))
    assert best.recall.tolist() == best.relative_mass.tolist() == [1, 1]
    assert (own.relative_mass > 1.01).all()
    assert (own.recall < 1).all()
    assert (own.output_error < best.output_error).all()


def test_a_budget_that_covers_the_context_loses_nothing():
    case = random_case()
    for quality in Judge(case, 2, 2, [torch.full((5,), 100), case.positions + 1]).judge(
        streaming(case)
    ):
        torch.testing.assert_close(quality.mass, torch.ones(2))
        torch.testing.assert_close(quality.recall, torch.ones(2))
        torch.testing.assert_close(quality.output_error, torch.zeros(2), rtol=0, atol=1e-5)


def test_budgets_may_differ_by_query():
    case = random_case()
    budgets = torch.tensor([6, 8, 10, 12, 14])
    (mixed,) = Judge(case, 2, 2, [budgets]).judge(streaming(case))
    attention = exact(case)
    masses = [
        (attention * by_hand(streaming(case), case, k, 2, 2)).sum(-1)[:, row]
        for row, k in enumerate(budgets.tolist())
    ]
    torch.testing.assert_close(mixed.mass, torch.stack(masses).mean(0))


def test_measuring_in_blocks_of_queries_changes_nothing(monkeypatch):
    case = random_case()
    budgets = [torch.full((5,), 12)]
    whole = Judge(case, 2, 2, budgets).judge(exact_per_head(case))
    monkeypatch.setattr("hata_sglang.evaluation.selection_quality.BLOCK", 1)
    blocks = Judge(case, 2, 2, budgets).judge(exact_per_head(case))
    assert vars(whole[0]).keys() == vars(blocks[0]).keys()
    for name, value in vars(whole[0]).items():
        torch.testing.assert_close(getattr(blocks[0], name), value)


@pytest.mark.parametrize("name", ["quest", "quest0", "loki-3", "lokiX", "dense", ""])
def test_unknown_selectors_are_refused(name):
    with pytest.raises(argparse.ArgumentTypeError, match=r"expected exact, .*found"):
        selector_name(name)


def test_names_may_carry_a_size():
    assert [selector_name(name) for name in ("quest64", "loki8", "exact")]
    assert loki_channels(["quest64", "loki8", "exact", "loki16"]) == [8, 16]
