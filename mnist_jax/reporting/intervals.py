"""Student's t intervals of means over seeds."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95


class Interval(NamedTuple):
    """A mean and the bounds of its interval, NaN for fewer than two values."""

    mean: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        """Formats the mean and its bounds; leaves out what is NaN.

        >>> f"{Interval(0.0012, 0.0003, 0.0021):+.4f}"
        '+0.0012 [+0.0003, +0.0021]'
        """
        mean, low, high = ("-" if math.isnan(x) else f"{x:{spec}}" for x in self)
        return mean if low == "-" else f"{mean} [{low}, {high}]"


def t_interval(values: Sequence[float], spread: float) -> Interval:
    """Returns mean ± t * s * spread, for n-1 degrees of freedom."""
    n = len(values)
    mean = float(np.mean(values))
    if n < 2:
        return Interval(mean, float("nan"), float("nan"))
    t = float(stats.t.ppf((1 + LEVEL) / 2, n - 1))
    half = t * float(np.std(values, ddof=1)) * spread
    return Interval(mean, float(mean - half), float(mean + half))


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Returns the 95 % confidence interval of the mean of the paired `first - second`.

    >>> [round(x, 3) for x in paired_difference([3.0, 4.0, 6.0], [1.0, 1.0, 2.0])]
    [3.0, 0.516, 5.484]
    """
    differences = np.asarray(first) - np.asarray(second)
    return t_interval(differences.tolist(), 1 / np.sqrt(len(differences)))
