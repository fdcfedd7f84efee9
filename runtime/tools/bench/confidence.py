"""Confidence intervals of a median and of the ratio of two samples, valid for every distribution of the seconds.

Times have a hard lower end and a long tail, so nothing here takes a mean or assumes a normal distribution. Both
intervals are read off sorted values at ranks whose probability is exact. Neither interval needs random numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

COVERAGE = 0.95
"""Coverage that an interval should have. With too few values, the result is the widest interval and its coverage."""


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval.

    Attributes:
        median: the estimate.
        low: lower end of the interval.
        high: upper end of the interval.
        coverage: probability that such an interval contains the true value, 0 to 1.
        count: number of pairs, or of values in the smaller sample.
    """

    median: float
    low: float
    high: float
    coverage: float
    count: int


def median_interval(values: Sequence[float]) -> Interval:
    """Return the median of independent values and its confidence interval between two order statistics.

    With n values x(1) <= … <= x(n), P(x(j) <= median <= x(n + 1 - j)) is at least 1 - 2 * sum(C(n, i), i < j) / 2^n.
    This is the inverted sign test (David and Nagaraja, Order Statistics, 3rd ed., 7.1). j is the largest rank whose
    interval still has the coverage `COVERAGE`. With 12 values, two outliers on either side move neither end.

    Args:
        values: independent values, at least one, such as the ratios of pairs.

    Raises:
        ValueError: `values` is empty.
    """
    if not values:
        raise ValueError("no values to take a median of")
    ordered, n = np.sort(values), len(values)
    outside, rank = 1, 1  # of 2^n equally likely sign patterns, those that leave the median below x(rank)
    while 2 * (outside + comb(n, rank)) <= (1 - COVERAGE) * 2**n:
        outside += comb(n, rank)
        rank += 1
    low, high = ordered[rank - 1], ordered[n - rank]
    return Interval(float(np.median(ordered)), float(low), float(high), 1 - 2 * outside / 2**n, n)


def ratio_interval(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Return the ratio of `first` to `second` and its confidence interval, for two samples that are not paired.

    This is the inverted Mann-Whitney test on logarithms (Hodges and Lehmann 1963, Moses; Hollander, Wolfe and Chicken,
    Nonparametric Statistical Methods, 3rd ed., 4.2 and 4.3). The estimate is the median of the m * n ratios of all
    pairs. The ends are the C-th smallest and the C-th largest ratio. C is the largest rank with
    2 * P(U <= C - 1) <= 1 - `COVERAGE` for the exact distribution of Mann and Whitney's U.

    Args:
        first: positive values, at least one.
        second: positive values, at least one.

    Raises:
        ValueError: a sample is empty.
    """
    if not first or not second:
        raise ValueError("no values to take a ratio of")
    ratios = np.sort(np.divide.outer(np.asarray(first, float), np.asarray(second, float)).ravel())
    counts = rank_sum_counts(len(first), len(second))
    total = sum(counts)
    outside, rank = counts[0], 1
    while 2 * (outside + counts[rank]) <= (1 - COVERAGE) * total and 2 * (rank + 1) <= len(ratios):
        outside += counts[rank]
        rank += 1
    coverage = max(0.0, 1 - 2 * outside / total)
    low, high = ratios[rank - 1], ratios[len(ratios) - rank]
    return Interval(float(np.median(ratios)), float(low), float(high), coverage, min(len(first), len(second)))


def rank_sum_counts(m: int, n: int) -> list[int]:
    """Return the number of the C(m + n, m) orders for each value 0, 1, …, m * n of Mann and Whitney's U.

    These are the coefficients of the Gaussian binomial, the product over i = 1..m of (1 - x^(n + i)) / (1 - x^i).
    """
    counts = [1] + [0] * (m * n)
    for i in range(1, m + 1):
        for u in range(m * n, n + i - 1, -1):
            counts[u] -= counts[u - n - i]
        for u in range(i, m * n + 1):
            counts[u] += counts[u - i]
    return counts
