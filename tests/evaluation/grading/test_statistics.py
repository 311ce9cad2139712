import numpy as np
import pytest

from hata_sglang.evaluation.statistics import Estimate, estimate


def test_interval_of_a_known_distribution():
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    found = estimate([values])
    half = 1.96 * values.std() / np.sqrt(400)  # of the normal approximation
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(found.mean - half, abs=0.03)
    assert found.high == pytest.approx(found.mean + half, abs=0.03)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    dice = np.random.default_rng(2)
    held = 0
    for trial in range(300):
        found = estimate([dice.binomial(1, 0.7, 60)], seed=trial, resamples=500)
        held += found.low <= 0.7 <= found.high
    assert 0.90 <= held / 300 <= 0.98


def test_same_seed_same_interval():
    values = [0, 1, 1, 0, 1]
    assert estimate([values], seed=3) == estimate([values], seed=3)
    assert estimate([np.arange(50.0)], seed=3) != estimate([np.arange(50.0)], seed=4)


def test_groups_count_alike_whatever_their_size():
    found = estimate([[1.0] * 30, [0.0, 0.0]])
    assert found == Estimate(0.5, 0.5, 0.5)


def test_one_sample_gives_no_interval_and_no_claim():
    found = estimate([[1.0, 1.0], [1.0]])
    assert found == Estimate(1.0, None, None)
    assert found.has_zero


def test_zero_inside_is_no_claim():
    assert estimate([[1, -1, 1, -1]]).has_zero
    assert not estimate([[1, 2, 1, 2]]).has_zero


@pytest.mark.parametrize("groups", [[], [[]], [[1.0], []]])
def test_nothing_to_average_is_an_error(groups):
    with pytest.raises(ValueError, match="expected at least one, none empty"):
        estimate(groups)
