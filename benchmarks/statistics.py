"""Student's t intervals for means over seeds, and bootstrap intervals of ratios."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from mnist_jax.reporting.intervals import LEVEL, Interval, t_interval


def prediction_interval(values: Sequence[float]) -> Interval:
    """Returns the 95 % prediction interval of one further run.

    Source: Student's t with n-1 degrees of freedom, mean ± t * s * sqrt(1 + 1/n).

    >>> [round(float(x), 3) for x in prediction_interval([1.0, 2.0, 3.0])]
    [2.0, -2.968, 6.968]
    """
    return t_interval(values, np.sqrt(1 + 1 / len(values)))


def difference(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Returns Welch's 95 % confidence interval of the difference of two means.

    >>> [round(x, 3) for x in difference([3.0, 4.0, 5.0], [1.0, 1.0, 1.3])]
    [2.9, 0.511, 5.289]
    """
    mean = float(np.mean(first) - np.mean(second))
    if min(len(first), len(second)) < 2:
        return Interval(mean, float("nan"), float("nan"))
    test = stats.ttest_ind(first, second, equal_var=False)
    return Interval(mean, *map(float, test.confidence_interval(LEVEL)))


def verdict(
    interval: Interval,
    at: float = 0,
    above: str = "holds",
    below: str = "does not hold",
) -> str:
    """Returns on which side of a value an interval lies, "undecided" if on both.

    >>> verdict(Interval(0.1, 0.05, 0.15)), verdict(Interval(0.1, -0.05, 0.25))
    ('holds', 'undecided')
    >>> verdict(Interval(0.8, 0.7, 0.9), 1, "slower", "faster")
    'faster'
    """
    if interval.low > at:
        return above
    return below if interval.high < at else "undecided"


Pairs = Sequence[Any]  # by round: an array-like [2,N], numerator and denominator


def percentile_ratio(rounds: Pairs, percent: float) -> float:
    """Returns the ratio of two percentiles over all rounds; see `ratio_interval`."""
    above, below = np.percentile(np.concatenate(rounds, axis=1), percent, axis=1)
    return float(above / below)


def ratio_interval(rounds: Pairs, percent: float, resamples: int = 500) -> Interval:
    """Returns the ratio of two percentiles with its 95 % bootstrap interval.

    Rounds are drawn with replacement, then pairs within each, since both times of a
    pair were taken one after the other.

    Args:
        rounds: for each round, the numerator's and the denominator's times, paired.
        percent: the percentile, as 25 for the lower quartile.
        resamples: number of draws.

    >>> [round(float(x), 2) for x in ratio_interval([([2, 4, 6], [1, 2, 3])], 50)]
    [2.0, 2.0, 2.0]
    """
    rng, pairs = np.random.default_rng(0), [np.asarray(both) for both in rounds]
    sizes = [both.shape[1] for both in pairs]
    drawn = []
    for _ in range(resamples):
        chosen = rng.integers(len(pairs), size=len(pairs))
        columns = [pairs[i][:, rng.integers(sizes[i], size=sizes[i])] for i in chosen]
        drawn.append(percentile_ratio(columns, percent))
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Interval(percentile_ratio(pairs, percent), float(low), float(high))
