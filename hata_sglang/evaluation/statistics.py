"""Averages with bootstrap intervals.

An average here is the mean of group means: a task counts as much as another, however many
samples each has. The bootstrap draws samples anew within each group and reads the interval off
the percentiles of the averages (Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
section 13.3). It says how much other samples of the same tasks would change the average; it does
not cover other tasks or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

#: Share of the draws inside an interval.
LEVEL = 0.95


class Estimate(NamedTuple):
    """An average and its interval.

    Attributes
    ----------
    mean : float
    low, high : float or None
        Bounds of the interval; None if some group has a single sample.
    """

    mean: float
    low: float | None
    high: float | None

    @property
    def has_zero(self) -> bool:
        """Whether the interval has zero inside (or is unknown): no claim then."""
        return self.low is None or self.low <= 0 <= self.high


def estimate(
    groups: Sequence[Sequence[float]], *, seed: int = 0, resamples: int = 10_000
) -> Estimate:
    """Mean of group means with its percentile bootstrap interval.

    Parameters
    ----------
    groups : sequence of sequence of float
        Scores, or differences of paired scores, by group.
    seed : int, default 0
        The same seed gives the same interval.
    resamples : int, default 10000

    Raises
    ------
    ValueError
        If there is no group, or an empty one.
    """
    arrays = [np.asarray(group, dtype=np.float64) for group in groups]
    sizes = [array.size for array in arrays]
    if not sizes or 0 in sizes:
        raise ValueError(f"groups: expected at least one, none empty, found sizes {sizes}")
    mean = float(np.mean([array.mean() for array in arrays]))
    if 1 in sizes:
        return Estimate(mean, None, None)
    dice = np.random.default_rng(seed)
    drawn = [array[dice.integers(0, array.size, (resamples, array.size))] for array in arrays]
    means = np.mean([draws.mean(axis=1) for draws in drawn], axis=0)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(mean, float(low), float(high))
