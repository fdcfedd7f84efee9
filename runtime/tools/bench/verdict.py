"""Verdicts on a ratio of times (faster, slower, same, unclear), and the thresholds that decide, with their reasons."""

from dataclasses import dataclass
from typing import Literal, Self

from qwen_image_engine.runtime.tools.bench.confidence import Interval

MIN_PAIRS = 5
"""Smallest number of pairs for a ratio. The widest interval between order statistics covers 1 - 2^(1 - n): 93.8% with 5
values, 87.5% with 4."""

MARGIN = 0.03
"""Smallest relative difference that is called a difference. Times of the same code vary as much with the order in which
files are linked or the size of the environment (Mytkowicz et al., Producing Wrong Data Without Doing Anything Obviously
Wrong, ASPLOS 2009). The interval of one run does not include this variation."""

STEADY = 1.25
"""Ratio of the p90 to the p50 of a steady step above which the machine is called noisy. Steps of one size do the same
work: without other processes, the slowest of five steps was within 1.09 of the median (benchmarks/results/speed.json).
A process that takes one of two cores raises the ratio to 1.5 to 2."""

WAITING = 0.05
"""Share of the time in which a thread was ready and had no core, above which the machine is called noisy. This share
makes times longer by a twentieth. A twentieth is between `MARGIN`, which is never called a difference, and a tenth,
which has to be found. Steadiness does not show a machine that is always busy, because every step waits equally long."""

TOO_BUSY = 0.25
"""Share of waiting above which there is no verdict. Waiting for a quarter of the time makes times a third longer. A
process that takes so much of a core also takes caches and memory bandwidth, which the share of waiting does not show:
a bundle was called slower than itself when its second run had waited for 65% of the time."""

TOO_NOISY = "too noisy to tell"

Verdict = Literal["faster", "slower", "same", "unclear"]


@dataclass(frozen=True)
class Noise:
    """The noise of the machine, from other processes, while a contender ran.

    Attributes:
        steadiness: ratio of the p90 to the p50 of a steady step; None if there are too few steps.
        waiting: share of the time in which a thread was ready and had no core; None if the system does not report it.
    """

    steadiness: float | None = None
    waiting: float | None = None

    @property
    def noisy(self) -> bool:
        """Whether the noise is above `STEADY` or `WAITING`."""
        return (self.steadiness or 0.0) > STEADY or (self.waiting or 0.0) > WAITING

    @property
    def too_busy(self) -> bool:
        """Whether the share of waiting is too large for any verdict on the times."""
        return (self.waiting or 0.0) > TOO_BUSY

    def margin(self, *, paired: bool) -> float:
        """Return the relative difference that a ratio has to exceed.

        A share w of waiting makes times 1 / (1 - w) as long.

        Contenders that draw in turn, in alternating order, meet the same disturbance. The remaining disturbance is the
        spread of their pairs, which the interval includes. Two runs at different times meet different disturbances.
        """
        waiting = min(self.waiting or 0.0, 0.99)
        spread = (self.steadiness or 0.0) - 1 if (self.steadiness or 0.0) > STEADY and not paired else 0.0
        return max(MARGIN, waiting / (1 - waiting), spread)

    def describe(self) -> str:
        """Return a description of the noise, or "" if the machine was not noisy."""
        parts = []
        if self.steadiness is not None and self.steadiness > STEADY:
            parts.append(f"the p90 of a steady step is {self.steadiness:.2f} of its p50 (at most {STEADY})")
        if self.waiting is not None and self.waiting > WAITING:
            bound = f"above {TOO_BUSY:.0%} nothing can be told" if self.too_busy else f"at most {WAITING:.0%}"
            parts.append(f"it waited for a core for {self.waiting:.0%} of the time ({bound})")
        return ", and ".join(parts)

    def worst(self, other: Self) -> Self:
        """Return the noise with the larger steadiness and the larger share of waiting of the two."""
        return type(self)(_largest(self.steadiness, other.steadiness), _largest(self.waiting, other.waiting))


@dataclass(frozen=True)
class RatioVerdict:
    """A ratio of times with its verdict. The ratio is above 1 if the judged contender is faster.

    Attributes:
        interval: the ratio with its confidence interval; None if there are too few values.
        verdict: the verdict; "unclear" if the interval allows both a difference and equality, the machine was too
            noisy, or there is no interval.
        reason: reason why the verdict is unclear, with the noise that caused it; "" if the verdict is clear.
        margin: relative difference that the ratio had to exceed.
    """

    interval: Interval | None
    verdict: Verdict
    reason: str
    margin: float

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Ends (low, high) of the interval widened by the margin. A difference always excludes 1 from these bounds."""
        if self.interval is None:
            return None
        return self.interval.low / (1 + self.margin), self.interval.high * (1 + self.margin)

    @property
    def words(self) -> str:
        """The verdict for a narrow column, without the noise, which is reported once for each contender."""
        if self.verdict != "unclear":
            return self.verdict
        return self.reason if self.interval is None else TOO_NOISY


def judge(interval: Interval, noise: Noise, *, paired: bool) -> RatioVerdict:
    """Compare an interval with a band around 1.

    An interval outside the band is a difference, an interval inside the band is none, and an interval across an end of
    the band is unclear. The band reaches from 1 / (1 + m) to 1 + m for the margin m of the noise. A noisy machine never
    shows equality, and a machine that was too busy gives no verdict.

    Args:
        interval: confidence interval of (seconds of the other contender) / (seconds of the judged contender).
        noise: the worse noise of the two contenders.
        paired: whether the contenders were measured in turn and the interval is computed from pairs.
    """
    if interval.count < MIN_PAIRS:
        return too_few(interval.count)
    margin = noise.margin(paired=paired)
    if noise.too_busy:
        return RatioVerdict(interval, "unclear", f"{TOO_NOISY}: {noise.describe()}", margin)
    if interval.low > 1 + margin:
        return RatioVerdict(interval, "faster", "", margin)
    if interval.high < 1 / (1 + margin):
        return RatioVerdict(interval, "slower", "", margin)
    if interval.low >= 1 / (1 + margin) and interval.high <= 1 + margin and not noise.noisy:
        return RatioVerdict(interval, "same", "", margin)
    return RatioVerdict(interval, "unclear", ": ".join(filter(None, (TOO_NOISY, noise.describe()))), margin)


def too_few(count: int) -> RatioVerdict:
    """Return the verdict if there are too few pairs for a ratio."""
    plural = "pair" if count == 1 else "pairs"
    return RatioVerdict(None, "unclear", f"{count} {plural}, a ratio needs {MIN_PAIRS}", MARGIN)


def _largest(*values: float | None) -> float | None:
    return max((value for value in values if value is not None), default=None)
