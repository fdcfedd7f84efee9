"""What a ratio of times says: faster, slower, the same, or nothing; the numbers that decide it, with their reasons."""

from dataclasses import dataclass
from typing import Literal

from qwen_image_engine.runtime.intervals import Interval

MIN_PAIRS = 5
"""The widest interval that order statistics give covers 1 - 2^(1 - n): 93.8% with 5 values, 87.5% with 4."""

MARGIN = 0.03
"""No difference below this is called one. The same code moves by as much with the order in which files are linked or
the size of the environment (Mytkowicz et al., Producing Wrong Data Without Doing Anything Obviously Wrong, ASPLOS
2009), and no interval of one run knows of that."""

STEADY = 1.25
"""The p90 of a steady step over its p50, above which the machine is called noisy. Steps of one size do the same work:
alone on their cores the slowest of five was within 1.09 of the median (benchmarks/results/speed.json); a process that
takes one of two cores makes it 1.5 to 2."""

Verdict = Literal["faster", "slower", "same", "unclear"]


@dataclass(frozen=True)
class Judged:
    """A ratio of times, above 1 where the one that is judged is faster.

    Attributes:
        interval: the ratio; None where there are too few values for one.
        verdict: "unclear" where the interval holds both a difference and none, or is missing.
        reason: in words why it is unclear, "" where it is not.
        margin: what a difference had to exceed.
    """

    interval: Interval | None
    verdict: Verdict
    reason: str
    margin: float


def judge(interval: Interval, steadiness: float | None) -> Judged:
    """Compare an interval with a band around 1: outside it is a difference, inside it is none, across is unclear.

    The band reaches from 1 / (1 + m) to 1 + m, m being `MARGIN`, or on a noisy machine how far its steps spread.

    Args:
        interval: of (seconds of the other) / (seconds of the one that is judged).
        steadiness: the larger p90 / p50 of a steady step of the two, None where it is not known.
    """
    if interval.count < MIN_PAIRS:
        return too_few(interval.count)
    noisy = steadiness is not None and steadiness > STEADY
    margin = steadiness - 1 if noisy and steadiness is not None else MARGIN
    if interval.low > 1 + margin:
        return Judged(interval, "faster", "", margin)
    if interval.high < 1 / (1 + margin):
        return Judged(interval, "slower", "", margin)
    if interval.low >= 1 / (1 + margin) and interval.high <= 1 + margin and not noisy:
        return Judged(interval, "same", "", margin)
    spread = f"too noisy to tell: {interval.low:.2f}x to {interval.high:.2f}x"
    cause = f", and the p90 of a steady step is {steadiness:.2f} of its p50 (at most {STEADY})" if noisy else ""
    return Judged(interval, "unclear", spread + cause, margin)


def too_few(count: int) -> Judged:
    """No ratio at all."""
    plural = "pair" if count == 1 else "pairs"
    return Judged(None, "unclear", f"{count} {plural}, a ratio needs {MIN_PAIRS}", MARGIN)
