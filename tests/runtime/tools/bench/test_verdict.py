"""The verdict on a planted slowdown: on noise that was recorded, with the rule that bench and compare use."""

import json
from statistics import median

import numpy as np
import pytest

from qwen_image_engine.runtime.tools.bench.confidence import Interval, median_interval, ratio_interval
from qwen_image_engine.runtime.tools.bench.measure import ROUNDS
from qwen_image_engine.runtime.tools.bench.verdict import (
    MARGIN,
    MIN_PAIRS,
    STEADY,
    TOO_BUSY,
    WAITING,
    Noise,
    judge,
    too_few,
)
from tests.support.paths import RESULTS

SPEED = RESULTS / "speed-zen4.json"
TRIALS = 300


@pytest.fixture(scope="module")
def noise() -> list[float]:
    """Seconds of 70 recorded steps, over the median of their way: 0.93 to 1.31.

    Noisier than what is judged: a round of `bench` is the median of its steady steps.
    """
    rows = json.loads(SPEED.read_text(encoding="utf-8"))["results"]
    return [seconds / median(row["rounds_s"]) for row in rows for seconds in row["rounds_s"]]


def verdicts(noise: list[float], slowdown: float, paired: bool) -> list[str]:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(TRIALS):
        before, after = rng.choice(noise, ROUNDS).tolist(), (slowdown * rng.choice(noise, ROUNDS)).tolist()
        interval = (
            median_interval([a / b for a, b in zip(before, after, strict=True)])
            if paired
            else ratio_interval(before, after)
        )
        found.append(judge(interval, Noise(), paired=paired).verdict)
    return found


@pytest.mark.parametrize("paired", [True, False], ids=["bench", "compare"])
def test_planted_slowdowns(noise: list[float], paired: bool) -> None:
    tenth = verdicts(noise, 1.10, paired)
    assert "faster" not in tenth
    assert tenth.count("slower") >= 0.8 * TRIALS  # the rest are unclear
    for slowdown in (1.01, 1 / 1.01, 1.0):
        found = verdicts(noise, slowdown, paired)
        assert found.count("slower") + found.count("faster") <= 0.05 * TRIALS


def test_bands() -> None:
    def verdict(low: float, high: float) -> str:
        return judge(Interval((low + high) / 2, low, high, 0.96, 9), Noise(STEADY, WAITING / 2), paired=True).verdict

    assert verdict(1.05, 1.2) == "faster"
    assert verdict(0.8, 0.95) == "slower"
    assert verdict(0.99, 1.02) == "same"
    assert verdict(1.01, 1.2) == "unclear"
    assert verdict(0.8, 1.3) == "unclear"
    assert verdict(1.005, 1.02) == "same"  # sure, and below what matters


def test_unsteady_steps_widen_the_band_between_two_runs() -> None:
    found = judge(Interval(1.2, 1.1, 1.3, 0.96, 9), Noise(STEADY + 0.15), paired=False)
    assert found.verdict == "unclear"
    assert found.margin == pytest.approx(STEADY + 0.15 - 1)
    assert "too noisy to tell: the p90 of a steady step is 1.40 of its p50" in found.reason
    assert found.words == "too noisy to tell"
    assert judge(Interval(2.0, 1.8, 2.2, 0.96, 9), Noise(STEADY + 0.15), paired=False).verdict == "faster"
    assert judge(Interval(1.2, 1.1, 1.3, 0.96, 9), Noise(STEADY), paired=False).margin == MARGIN


def test_unsteady_steps_hit_both_of_a_pair_and_only_deny_equality() -> None:
    noise = Noise(STEADY + 0.15)
    assert judge(Interval(1.1, 1.08, 1.12, 0.96, 9), noise, paired=True).verdict == "faster"
    assert judge(Interval(1.0, 0.999, 1.001, 0.96, 9), noise, paired=True).verdict == "unclear"


@pytest.mark.parametrize("noise", [Noise(), Noise(1.4), Noise(1.0, 0.2)])
@pytest.mark.parametrize("paired", [True, False])
def test_the_bounds_leave_1_out_exactly_where_a_difference_is_told(noise: Noise, paired: bool) -> None:
    kinds = set()
    for middle in np.linspace(0.5, 2.0, 151):
        found = judge(Interval(middle, middle / 1.02, middle * 1.02, 0.96, 9), noise, paired=paired)
        assert found.bounds is not None
        assert (found.verdict in ("faster", "slower")) == (not found.bounds[0] <= 1 <= found.bounds[1])
        kinds.add(found.verdict)
    assert {"faster", "slower"} < kinds


def test_a_full_machine_shows_little_however_steady_its_steps_are() -> None:
    noise = Noise(1.01, 0.2)
    assert noise.noisy
    found = judge(Interval(1.25, 1.2, 1.3, 0.96, 9), noise, paired=True)
    assert found.margin == pytest.approx(0.25)
    assert found.verdict == "unclear"
    assert "it waited for a core for 20% of the time (at most 5%)" in found.reason
    assert judge(Interval(3.0, 2.5, 3.5, 0.96, 9), noise, paired=True).verdict == "faster"
    equal = Interval(1.0, 0.999, 1.001, 0.96, 9)
    assert judge(equal, noise, paired=True).verdict == "unclear"  # nor does it show equality
    assert Noise(1.3, None).worst(Noise(None, 0.2)) == Noise(1.3, 0.2)
    assert Noise().describe() == ""


@pytest.mark.parametrize("ratio", [0.1, 1.0, 10.0])
def test_a_machine_that_is_too_busy_shows_nothing(ratio: float) -> None:
    found = judge(Interval(ratio, ratio, ratio, 0.96, 9), Noise(1.0, 0.65).worst(Noise(1.0, 0.01)), paired=False)
    assert found.verdict == "unclear"
    assert found.reason == (
        "too noisy to tell: it waited for a core for 65% of the time (above 25% nothing can be told)"
    )
    assert judge(Interval(10.0, 10.0, 10.0, 0.96, 9), Noise(1.0, TOO_BUSY), paired=True).verdict == "faster"


def test_too_few_pairs_give_no_ratio() -> None:
    found = judge(median_interval([2.0] * (MIN_PAIRS - 1)), Noise(), paired=True)
    assert found == too_few(MIN_PAIRS - 1)
    assert found.interval is None
    assert found.reason == found.words == "4 pairs, a ratio needs 5"
    assert judge(median_interval([2.0] * MIN_PAIRS), Noise(), paired=True).verdict == "faster"
