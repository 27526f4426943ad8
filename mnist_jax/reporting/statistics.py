"""Intervals over seeds and rounds, what follows from them, and numbers as text."""

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

LEVEL = 0.95
_RESAMPLES = 500  # of the bootstrap


class Interval(NamedTuple):
    """A mean, median or ratio and the bounds of its interval; NaN if unknown."""

    mean: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        """Formats the value and its bounds; leaves out what is NaN.

        >>> f"{Interval(0.0012, 0.0003, 0.0021):+.4f}"
        '+0.0012 [+0.0003, +0.0021]'
        """
        mean, low, high = ("-" if math.isnan(x) else f"{x:{spec}}" for x in self)
        return mean if low == "-" else f"{mean} [{low}, {high}]"


def verdict(interval: Interval, at: float, above: str, below: str) -> str:
    """Returns on which side of a value an interval lies, "undecided" if on both.

    >>> verdict(Interval(0.8, 0.7, 0.9), 1, "slower", "faster")
    'faster'
    """
    if interval.low > at:
        return above
    return below if interval.high < at else "undecided"


def format_spread(mean: float, std: float, n: int) -> str:
    """Formats a mean ± standard deviation (n), or just the mean if n is 1."""
    return f"{mean:.4f}{f' ± {std:.4f}' if n > 1 else ''} (n={n})"


def spread(values: Sequence[float]) -> str:
    """Formats values by their mean ± standard deviation.

    >>> spread([0.97, 0.98])
    '0.9750 ± 0.0071 (n=2)'
    """
    sample = pd.Series(values)
    return format_spread(sample.mean(), sample.std(), len(sample))


def median_range(values: Sequence[float]) -> Interval:
    """Returns the median and the range of values.

    >>> f"{median_range([1000.0, 3000.0, 2000.0]):,.0f}"
    '2,000 [1,000, 3,000]'
    """
    values = values or [math.nan]
    return Interval(statistics.median(values), min(values), max(values))


def mean_interval(values: ArrayLike) -> Interval:
    """Returns a mean and its 95 % confidence interval (Student's t).

    >>> [round(x, 3) for x in mean_interval([2.0, 3.0, 4.0])]
    [3.0, 0.516, 5.484]
    """
    sample = pd.Series(values, dtype=float)
    mean, t = float(sample.mean()), float(stats.t.ppf((1 + LEVEL) / 2, len(sample) - 1))
    half = t * float(sample.sem())  # NaN of one value
    return Interval(mean, mean - half, mean + half)


def prediction_interval(values: Sequence[float]) -> Interval:
    """Returns the 95 % prediction interval of one further run.

    >>> [round(x, 3) for x in prediction_interval([1.0, 2.0, 3.0])]
    [2.0, -2.968, 6.968]
    """
    mean, _, high = mean_interval(values)
    # Its variance is s² (1 + 1/n), that of the mean is s²/n.
    half = (high - mean) * math.sqrt(len(values) + 1)
    return Interval(mean, mean - half, mean + half)


def welch_difference(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Returns Welch's 95 % confidence interval of the difference of two means.

    >>> [round(x, 3) for x in welch_difference([3.0, 4.0, 5.0], [1.0, 1.0, 1.3])]
    [2.9, 0.511, 5.289]
    """
    mean = float(np.mean(first) - np.mean(second))
    if min(len(first), len(second)) < 2:
        return Interval(mean, math.nan, math.nan)
    test = stats.ttest_ind(first, second, equal_var=False)
    return Interval(mean, *map(float, test.confidence_interval(LEVEL)))


def ratio_interval(rounds: Sequence[Any], percent: float) -> Interval:
    """Returns the ratio of two percentiles with its 95 % bootstrap interval.

    Rounds are drawn with replacement, then pairs within each, since both times of a
    pair were taken one after the other.

    Args:
        rounds: for each round, the numerator's and the denominator's times `[2,N]`.
        percent: the percentile, as 25 for the lower quartile.

    >>> [round(float(x), 2) for x in ratio_interval([([2, 4, 6], [1, 2, 3])], 50)]
    [2.0, 2.0, 2.0]
    """
    rng, pairs = np.random.default_rng(0), [np.asarray(both) for both in rounds]

    def ratio(pairs: Sequence[np.ndarray]) -> float:
        above, below = np.percentile(np.concatenate(pairs, axis=1), percent, axis=1)
        return float(above / below)

    def resample() -> list[np.ndarray]:
        chosen = rng.integers(len(pairs), size=len(pairs))
        return [rng.choice(pairs[i], pairs[i].shape[1], axis=1) for i in chosen]

    ratios = [ratio(resample()) for _ in range(_RESAMPLES)]
    low, high = np.percentile(ratios, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return Interval(ratio(pairs), float(low), float(high))
