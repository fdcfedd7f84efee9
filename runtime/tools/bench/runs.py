"""The measurements of every contender on one case: samples, quantiles, noise, ratios."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from statistics import median

import numpy as np

from qwen_image_engine.runtime.system.memory_use import MemoryUse
from qwen_image_engine.runtime.system.text import size_text
from qwen_image_engine.runtime.tools.bench.case import Case
from qwen_image_engine.runtime.tools.bench.confidence import median_interval
from qwen_image_engine.runtime.tools.bench.stages import COMPARED, STAGES, STEADY_STEP, Sample
from qwen_image_engine.runtime.tools.bench.verdict import MIN_PAIRS, Noise, RatioVerdict, judge, too_few

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


@dataclass(frozen=True)
class ContenderRuns:
    """The measurements of one contender on one case.

    Attributes:
        contender: name of the contender.
        role: "engine" or "baseline".
        warm_up: seconds by stage of the first picture, which include the time of reading memory.
        peaks: peak memory of the process by stage, the larger of the first picture and the picture after the last
            round; empty if the system does not report it.
        rounds: seconds by stage of the counted pictures, in the order of the rounds.
        waiting: share of the time in which a thread was ready and had no core, for each counted picture; None if the
            system does not report it.
        picture: first picture of the batch after the last round as a PNG; None if it was not requested. The JSON does
            not contain it.
    """

    contender: str
    role: str
    warm_up: Sample
    peaks: Mapping[str, MemoryUse]
    rounds: tuple[Sample, ...]
    waiting: tuple[float | None, ...]
    picture: bytes | None = None

    def seconds(self, stage: str) -> list[float]:
        """Return the seconds of a stage in each round, for "step" the median of the steady steps.

        The list is empty if the stage did not run.
        """
        return [median(found[stage]) for found in self.rounds if stage in found]

    def all_seconds(self, stage: str) -> list[float]:
        """Return every sample of a stage [s], for "step" one sample for each steady step."""
        return [seconds for found in self.rounds for seconds in found.get(stage, ())]

    @cached_property
    def quantiles(self) -> Mapping[str, Mapping[str, float]]:
        """Interpolated p50, p90 and p99 of each stage over all samples. With few samples, p99 is nearly the slowest."""
        found = {}
        for stage in STAGES:
            seconds = self.all_seconds(stage)
            if seconds:
                values = np.quantile(seconds, list(QUANTILES.values()))
                found[stage] = dict(zip(QUANTILES, map(float, values), strict=True))
        return found

    @property
    def steadiness(self) -> float | None:
        """Ratio of the p90 to the p50 of a steady step; None if there are fewer than `MIN_PAIRS` samples."""
        if len(self.all_seconds(STEADY_STEP)) < MIN_PAIRS:
            return None
        step = self.quantiles[STEADY_STEP]
        return step["p90"] / step["p50"]

    @property
    def noise(self) -> Noise:
        """Noise of the machine while the contender ran."""
        told = [share for share in self.waiting if share is not None]
        return Noise(self.steadiness, median(told) if told else None)


@dataclass(frozen=True)
class Ratio:
    """The factor by which an engine is faster than a baseline in one stage, from pairs of one round each."""

    engine: str
    baseline: str
    stage: str
    judged: RatioVerdict

    def cells(self) -> dict[str, str]:
        """Return the ratio's texts by column, for tables of the terminal and of pages."""
        at = self.judged.interval
        return {
            "engine": self.engine,
            "against": self.baseline,
            "stage": self.stage,
            "ratio": "" if at is None else f"{at.median:.2f}x",
            "interval": "" if at is None else f"{at.low:.2f} to {at.high:.2f}",
            "covers": "" if at is None else f"{at.coverage:.1%}",
            "pairs": "" if at is None else str(at.count),
            "margin": f"{self.judged.margin:.1%}",
            "verdict": self.judged.words,
        }


@dataclass(frozen=True)
class CaseRuns:
    """The interleaved runs of every contender on one case."""

    case: Case
    runs: tuple[ContenderRuns, ...]

    def times(self, seconds: Callable[[float], str]) -> list[dict[str, str]]:
        """Return the texts by column of each contender and stage, for tables of the terminal and of pages."""
        return [
            {
                "way": run.contender,
                "stage": stage,
                **{name: seconds(value) for name, value in quantiles.items()},
                "samples": str(len(run.all_seconds(stage))),
                "peak memory": size_text(run.peaks[stage].resident_bytes) if stage in run.peaks else "",
            }
            for run in self.runs
            for stage, quantiles in run.quantiles.items()
        ]

    def ratios(self) -> tuple[Ratio, ...]:
        """Return the ratio of every engine to every baseline, for each stage that both have."""
        engines, baselines = ([run for run in self.runs if run.role == role] for role in ("engine", "baseline"))
        return tuple(
            Ratio(own.contender, other.contender, stage, _judged(own, other, stage))
            for own, other in product(engines, baselines)
            for stage in COMPARED
            if own.seconds(stage) and other.seconds(stage)
        )


def _judged(own: ContenderRuns, other: ContenderRuns, stage: str) -> RatioVerdict:
    pairs = [slow / fast for slow, fast in zip(other.seconds(stage), own.seconds(stage), strict=True)]
    if len(pairs) < MIN_PAIRS:
        return too_few(len(pairs))
    return judge(median_interval(pairs), own.noise.worst(other.noise), paired=True)
