"""Intervals against published tables, every order counted by hand, and samples whose true ratio is known."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from qwen_image_engine.runtime.tools.bench.confidence import Interval, median_interval, rank_sum_counts, ratio_interval


@pytest.mark.parametrize(
    ("count", "low", "high", "coverage"),
    # Ranks and coverage of the confidence interval of a median, as tables of nonparametric statistics have them.
    [(5, 1, 5, 0.9375), (6, 1, 6, 0.9688), (9, 2, 8, 0.9609), (12, 3, 10, 0.9614), (20, 6, 15, 0.9586)],
)
def test_ranks_of_a_median(count: int, low: int, high: int, coverage: float) -> None:
    values = np.random.default_rng(count).permutation(np.arange(1.0, count + 1)).tolist()
    found = median_interval(values)
    assert (found.low, found.high, found.count) == (low, high, count)
    assert found.coverage == pytest.approx(coverage, abs=5e-5)
    assert found.median == np.median(values)


@pytest.mark.parametrize("outlier", [1e-6, 1e6])
def test_one_outlier_moves_neither_end(outlier: float) -> None:
    values = [1.0, 1.01, 1.02, 1.03, 1.04, 1.05, 1.06, 1.07]
    plain, spoiled = median_interval([*values, 1.035]), median_interval([*values, outlier])
    assert 1.0 <= spoiled.low <= plain.median <= spoiled.high <= 1.07


def test_counts_of_ranks_are_those_of_every_order() -> None:
    m, n = 4, 5
    # U counts the pairs in which a member of the first sample stands behind one of the second.
    sums = Counter(sum(places) - m * (m - 1) // 2 for places in combinations(range(m + n), m))
    assert rank_sum_counts(m, n) == [sums[u] for u in range(m * n + 1)]


@pytest.mark.parametrize(("count", "critical"), [(5, 2), (9, 17), (10, 23), (20, 127)])
def test_ranks_of_a_ratio(count: int, critical: int) -> None:
    """The published critical values of U, two-sided 5%: the interval's ends are the pairs of the next rank."""
    first, second = (2.0 ** np.arange(count)).tolist(), (3.0 ** np.arange(count)).tolist()
    ratios = sorted(a / b for a in first for b in second)
    found = ratio_interval(first, second)
    assert found.low == pytest.approx(ratios[critical])
    assert found.high == pytest.approx(ratios[-critical - 1])
    assert 0.95 <= found.coverage < 0.97


@pytest.mark.parametrize("paired", [True, False])
def test_coverage_on_times_with_long_tails(paired: bool) -> None:
    """A true ratio of 1.2 is in the interval as often as it says; a mean and its deviation would miss it."""
    rng = np.random.default_rng(0)

    def interval() -> Interval:
        drawn = np.exp(0.1 * rng.standard_normal((2, 9)) + (rng.random((2, 9)) < 0.1) * rng.exponential(1, (2, 9)))
        first, second = (1.2 * drawn[0]).tolist(), drawn[1].tolist()
        if paired:
            return median_interval([a / b for a, b in zip(first, second, strict=True)])
        return ratio_interval(first, second)

    found = [interval() for _ in range(400)]
    held = np.mean([item.low <= 1.2 <= item.high for item in found])
    assert abs(held - found[0].coverage) < 0.03  # three standard deviations of 400 draws


def test_swapping_the_samples_inverts_the_ratio() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.random(7).tolist(), rng.random(8).tolist()
    one, other = ratio_interval(first, second), ratio_interval(second, first)
    assert (one.low, one.high) == (pytest.approx(1 / other.high), pytest.approx(1 / other.low))


def test_nothing_to_measure() -> None:
    with pytest.raises(ValueError, match="no values"):
        median_interval([])
    with pytest.raises(ValueError, match="no values"):
        ratio_interval([1.0], [])
    assert ratio_interval([2.0], [1.0]) == Interval(2.0, 2.0, 2.0, 0.0, 1)
