"""What a ratio of times says: faster, slower, the same, or nothing; the numbers that decide it, with their reasons."""

from dataclasses import dataclass
from typing import Literal, Self

from qwen_image_engine.runtime.tools.bench.confidence import Interval

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

WAITING = 0.05
"""The share of its time for which a thread of a way was ready and had no core, above which the machine is called noisy.
It makes times longer by a twentieth, between what is never called a difference and the tenth that has to be found.
Steadiness does not show a machine that is always full: there every step waits alike."""

TOO_BUSY = 0.25
"""The share of waiting above which there is no verdict at all. A quarter makes times a third longer by waiting alone,
and what takes that much of a core takes caches and memory bandwidth too, which no count of waiting shows: one bundle
was called slower than itself where its second run had waited for 65% of the time."""

TOO_NOISY = "too noisy to tell"

Verdict = Literal["faster", "slower", "same", "unclear"]


@dataclass(frozen=True)
class Noise:
    """What other processes did to one way.

    Attributes:
        steadiness: the p90 of a steady step over its p50, None where there are too few steps.
        waiting: the share of the time in which a thread was ready and had no core, None where the system is silent.
    """

    steadiness: float | None = None
    waiting: float | None = None

    @property
    def noisy(self) -> bool:
        """Whether it is more than a machine should have."""
        return (self.steadiness or 0.0) > STEADY or (self.waiting or 0.0) > WAITING

    @property
    def too_busy(self) -> bool:
        """Whether nothing can be told of times that were taken meanwhile."""
        return (self.waiting or 0.0) > TOO_BUSY

    def margin(self, *, paired: bool) -> float:
        """What a difference has to exceed: a share w of waiting makes times 1 / (1 - w) as long.

        Ways that draw in turn, in one order and then the other, meet the same disturbance, and what is left of it is
        the spread of their pairs, which the interval has. Two runs at other times meet each its own.
        """
        waiting = min(self.waiting or 0.0, 0.99)
        spread = (self.steadiness or 0.0) - 1 if (self.steadiness or 0.0) > STEADY and not paired else 0.0
        return max(MARGIN, waiting / (1 - waiting), spread)

    def describe(self) -> str:
        """In words, "" where it is not noisy."""
        parts = []
        if self.steadiness is not None and self.steadiness > STEADY:
            parts.append(f"the p90 of a steady step is {self.steadiness:.2f} of its p50 (at most {STEADY})")
        if self.waiting is not None and self.waiting > WAITING:
            bound = f"above {TOO_BUSY:.0%} nothing can be told" if self.too_busy else f"at most {WAITING:.0%}"
            parts.append(f"it waited for a core for {self.waiting:.0%} of the time ({bound})")
        return ", and ".join(parts)

    def worst(self, other: Self) -> Self:
        """The larger of each of two."""
        return type(self)(_largest(self.steadiness, other.steadiness), _largest(self.waiting, other.waiting))


@dataclass(frozen=True)
class Judged:
    """A ratio of times, above 1 where the one that is judged is faster.

    Attributes:
        interval: the ratio; None where there are too few values for one.
        verdict: "unclear" where the interval holds both a difference and none, or is missing.
        reason: in words why it is unclear, with the noise that made it so; "" where it is not.
        margin: what a difference had to exceed.
    """

    interval: Interval | None
    verdict: Verdict
    reason: str
    margin: float

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The interval with the margin in it, low and high: 1 lies outside exactly where a difference is told."""
        if self.interval is None:
            return None
        return self.interval.low / (1 + self.margin), self.interval.high * (1 + self.margin)

    @property
    def words(self) -> str:
        """The verdict for a narrow column: the noise is told of a way, and not again of each of its stages."""
        if self.verdict != "unclear":
            return self.verdict
        return self.reason if self.interval is None else TOO_NOISY


def judge(interval: Interval, noise: Noise, *, paired: bool) -> Judged:
    """Compare an interval with a band around 1: outside it is a difference, inside it is none, across is unclear.

    The band reaches from 1 / (1 + m) to 1 + m, m being the noise's margin; a noisy machine shows no equality, and one
    that was too busy nothing.

    Args:
        interval: of (seconds of the other) / (seconds of the one that is judged).
        noise: the worst of the two.
        paired: whether the two were measured in turn, and the interval is that of their pairs.
    """
    if interval.count < MIN_PAIRS:
        return too_few(interval.count)
    margin = noise.margin(paired=paired)
    if noise.too_busy:
        return Judged(interval, "unclear", f"{TOO_NOISY}: {noise.describe()}", margin)
    if interval.low > 1 + margin:
        return Judged(interval, "faster", "", margin)
    if interval.high < 1 / (1 + margin):
        return Judged(interval, "slower", "", margin)
    if interval.low >= 1 / (1 + margin) and interval.high <= 1 + margin and not noise.noisy:
        return Judged(interval, "same", "", margin)
    return Judged(interval, "unclear", ": ".join(filter(None, (TOO_NOISY, noise.describe()))), margin)


def too_few(count: int) -> Judged:
    """No ratio at all."""
    plural = "pair" if count == 1 else "pairs"
    return Judged(None, "unclear", f"{count} {plural}, a ratio needs {MIN_PAIRS}", MARGIN)


def _largest(*values: float | None) -> float | None:
    return max((value for value in values if value is not None), default=None)
