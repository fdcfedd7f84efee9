"""The result of a benchmark: every sample, what follows from them, and the JSON that keeps it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import product
from statistics import median
from typing import Any, Self

import numpy as np

from qwen_image_engine.runtime.bench_case import Case
from qwen_image_engine.runtime.bench_settings import Settings
from qwen_image_engine.runtime.bench_stages import COMPARED, STAGES, STEADY_STEP, Sample
from qwen_image_engine.runtime.intervals import median_interval
from qwen_image_engine.runtime.process_memory import MemoryUse
from qwen_image_engine.runtime.verdict import MIN_PAIRS, Judged, Noise, judge, too_few

FORMAT = "qwen-image-bench"
SCHEMA = 1

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


@dataclass(frozen=True)
class WayFacts:
    """One way of drawing, as it was loaded, or why it was not.

    Attributes:
        name: an engine of the bundle, or a peer.
        role: "engine" or "baseline".
        missing: why there are no figures and what to do; None where there are some.
        version: of the package that computes.
        precision: of the networks.
        load_s: from a process that has imported nothing to one that can draw, Python's own start aside.
        load_peak: of the process meanwhile, None where the system does not tell.
        peak_bytes: the most that was ever resident in its process, likewise.
        disk_bytes: of the files that it reads.
    """

    name: str
    role: str
    missing: str | None = None
    version: str = ""
    precision: str = ""
    load_s: float = 0.0
    load_peak: MemoryUse | None = None
    peak_bytes: int | None = None
    disk_bytes: int = 0


@dataclass(frozen=True)
class WayRuns:
    """What one way took for one case.

    Attributes:
        way: its name.
        role: "engine" or "baseline".
        warm_up: the first picture, in whose seconds reading its memory counts.
        peaks: of its process by stage, in that picture or in the one after the last round; empty where the system does
            not tell.
        rounds: the pictures that count, in the order of the rounds.
        waiting: in each of them, the share of the time in which a thread was ready and had no core; None where the
            system does not tell.
        picture: the first of the batch after the last round, a PNG; None where nobody asked, and not in the JSON.
    """

    way: str
    role: str
    warm_up: Sample
    peaks: Mapping[str, MemoryUse]
    rounds: tuple[Sample, ...]
    waiting: tuple[float | None, ...]
    picture: bytes | None = None

    def seconds(self, stage: str) -> list[float]:
        """One number a round: the median of its steady steps, or the stage's own; empty where it did not run."""
        return [median(found[stage]) for found in self.rounds if stage in found]

    def all_seconds(self, stage: str) -> list[float]:
        """Every sample: that of each steady step."""
        return [seconds for found in self.rounds for seconds in found.get(stage, ())]

    @cached_property
    def quantiles(self) -> Mapping[str, Mapping[str, float]]:
        """p50, p90 and p99 of each stage over all samples, interpolated; of few samples p99 is nearly the slowest."""
        found = {}
        for stage in STAGES:
            seconds = self.all_seconds(stage)
            if seconds:
                values = np.quantile(seconds, list(QUANTILES.values()))
                found[stage] = dict(zip(QUANTILES, map(float, values), strict=True))
        return found

    @property
    def steadiness(self) -> float | None:
        """The p90 of a steady step over its p50; None where there are fewer than `MIN_PAIRS` of them."""
        if len(self.all_seconds(STEADY_STEP)) < MIN_PAIRS:
            return None
        step = self.quantiles[STEADY_STEP]
        return step["p90"] / step["p50"]

    @property
    def noise(self) -> Noise:
        """Of the machine while it ran."""
        told = [share for share in self.waiting if share is not None]
        return Noise(self.steadiness, median(told) if told else None)


@dataclass(frozen=True)
class Ratio:
    """How many times faster an engine ran one stage than a baseline, from pairs of one round each."""

    engine: str
    baseline: str
    stage: str
    judged: Judged


@dataclass(frozen=True)
class CaseRuns:
    """Every way on one case, interleaved."""

    case: Case
    runs: tuple[WayRuns, ...]

    def ratios(self) -> tuple[Ratio, ...]:
        """Of every engine to every baseline, in each stage that both have."""
        engines, baselines = ([run for run in self.runs if run.role == role] for role in ("engine", "baseline"))
        return tuple(
            Ratio(own.way, other.way, stage, _judged(own, other, stage))
            for own, other in product(engines, baselines)
            for stage in COMPARED
            if own.seconds(stage) and other.seconds(stage)
        )


@dataclass(frozen=True)
class Benchmark:
    """A whole benchmark.

    Attributes:
        settings: what was asked for.
        bundle: facts of the bundle: target, precision, checkpoint, its hashes, bytes on disk by folder.
        environment: machine, versions of packages, the time at which it began.
        ways: engines first, those that are missing among them.
        cases: in the order in which they ran.
    """

    settings: Settings
    bundle: Mapping[str, Any]
    environment: Mapping[str, Any]
    ways: tuple[WayFacts, ...]
    cases: tuple[CaseRuns, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: every sample; quantiles and ratios, which follow from them, beside them."""
        return {
            "format": FORMAT,
            "schema": SCHEMA,
            "command": self.settings.command(),
            "settings": asdict(self.settings),
            "bundle": dict(self.bundle),
            "environment": dict(self.environment),
            "ways": [asdict(way) for way in self.ways],
            "cases": [_case_to_json(case) for case in self.cases],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read back what `to_json` gave, `format` and `schema` being right.

        Raises:
            KeyError: a value is missing.
            TypeError: one has another form.
            ValueError: likewise.
        """
        settings = dict(data["settings"])
        settings["sizes"] = tuple((int(width), int(height)) for width, height in settings["sizes"])
        for name in ("engines", "baselines", "steps", "batches", "references"):
            settings[name] = tuple(settings[name])
        return cls(
            settings=Settings(**settings),
            bundle=data["bundle"],
            environment=data["environment"],
            ways=tuple(WayFacts(**{**way, "load_peak": _memory(way["load_peak"])}) for way in data["ways"]),
            cases=tuple(_case_from_json(case) for case in data["cases"]),
        )


def _judged(own: WayRuns, other: WayRuns, stage: str) -> Judged:
    pairs = [slow / fast for slow, fast in zip(other.seconds(stage), own.seconds(stage), strict=True)]
    if len(pairs) < MIN_PAIRS:
        return too_few(len(pairs))
    return judge(median_interval(pairs), own.noise.worst(other.noise))


def _case_to_json(found: CaseRuns) -> dict[str, Any]:
    return {
        "case": asdict(found.case),
        "runs": [
            {
                "way": run.way,
                "role": run.role,
                "warm_up": _sample_to_json(run.warm_up),
                "peaks": {stage: asdict(peak) for stage, peak in run.peaks.items()},
                "rounds": [_sample_to_json(sample) for sample in run.rounds],
                "quantiles": run.quantiles,
                "waiting": list(run.waiting),
                "steadiness": run.steadiness,
                "noise": run.noise.describe(),
            }
            for run in found.runs
        ],
        "ratios": [
            {
                "engine": ratio.engine,
                "baseline": ratio.baseline,
                "stage": ratio.stage,
                "ratio": None if ratio.judged.interval is None else asdict(ratio.judged.interval),
                "verdict": ratio.judged.verdict,
                "reason": ratio.judged.reason,
                "margin": ratio.judged.margin,
            }
            for ratio in found.ratios()
        ],
    }


def _case_from_json(data: Mapping[str, Any]) -> CaseRuns:
    runs = tuple(
        WayRuns(
            way=str(run["way"]),
            role=str(run["role"]),
            warm_up=_sample(run["warm_up"]),
            peaks={stage: MemoryUse(**peak) for stage, peak in run["peaks"].items()},
            rounds=tuple(map(_sample, run["rounds"])),
            waiting=tuple(run["waiting"]),
        )
        for run in data["runs"]
    )
    return CaseRuns(Case(**data["case"]), runs)


def _sample_to_json(found: Sample) -> dict[str, list[float]]:
    return {stage: list(seconds) for stage, seconds in found.items()}


def _sample(data: Mapping[str, Iterable[float]]) -> Sample:
    return {str(stage): tuple(map(float, seconds)) for stage, seconds in data.items()}


def _memory(data: Mapping[str, int] | None) -> MemoryUse | None:
    return None if data is None else MemoryUse(**data)
