"""Averages with bootstrap intervals, and differences between arms on the same samples.

An average here is the mean of group means: a task counts as much as another, however many
samples each has. The bootstrap draws samples anew within each group and reads the interval off
the percentiles of the averages (Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
section 13.3). It says how much other samples of the same tasks would change the average; it does
not cover other tasks or models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
RESAMPLES = 10_000
#: Draws that are held at once, to bound the memory.
BLOCK = 2_000_000


@dataclass(frozen=True)
class Estimate:
    """An average and its interval.

    Attributes
    ----------
    mean : float
    low, high : float or None
        Bounds of the interval; None if some group has a single sample.
    count : int
        Samples, over all groups.
    """

    mean: float
    low: float | None
    high: float | None
    count: int

    @property
    def has_zero(self) -> bool:
        """Whether the interval has zero inside (or is unknown): no claim then."""
        return self.low is None or self.high is None or self.low <= 0 <= self.high


def estimate(
    groups: Sequence[Sequence[float]],
    *,
    seed: int = 0,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Mean of group means with its percentile bootstrap interval.

    Parameters
    ----------
    groups : sequence of sequence of float
        Scores, or differences of paired scores, by group.
    seed : int, default 0
        The same seed gives the same interval.
    level : float, default 0.95
        Share of the draws inside the interval.
    resamples : int, default 10000

    Returns
    -------
    Estimate

    Raises
    ------
    ValueError
        If there is no group, or an empty one.
    """
    arrays = [np.asarray(group, dtype=np.float64) for group in groups]
    if not arrays or any(array.size == 0 for array in arrays):
        sizes = [array.size for array in arrays]
        raise ValueError(f"groups: expected at least one, none empty, found sizes {sizes}")
    mean = float(np.mean([array.mean() for array in arrays]))
    count = sum(array.size for array in arrays)
    if any(array.size == 1 for array in arrays):
        return Estimate(mean, None, None, count)
    dice = np.random.default_rng(seed)
    total = np.zeros(resamples)
    for array in arrays:
        rows = max(1, BLOCK // array.size)
        for start in range(0, resamples, rows):
            shape = (min(rows, resamples - start), array.size)
            drawn = array[dice.integers(0, array.size, shape)]
            total[start : start + rows] += drawn.mean(axis=1)
    tail = (1 - level) / 2
    low, high = np.quantile(total / len(arrays), [tail, 1 - tail])
    return Estimate(mean, float(low), float(high), count)


def average(scores: Mapping[object, Mapping[object, float]]) -> Estimate:
    """`estimate` of scores by group and sample."""
    return estimate([list(own.values()) for own in scores.values()])


def paired(
    ours: dict[object, dict[object, float]], theirs: dict[object, dict[object, float]]
) -> list[list[float]]:
    """Differences on the samples that both have, by group.

    Parameters
    ----------
    ours, theirs : dict of dict of float
        Scores by group and sample.

    Returns
    -------
    list of list of float
        Ours less theirs, without the groups that share no sample.
    """
    groups = []
    for group, scores in ours.items():
        other = theirs.get(group, {})
        differences = [scores[sample] - other[sample] for sample in scores if sample in other]
        if differences:
            groups.append(differences)
    return groups
