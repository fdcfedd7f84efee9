"""The result of a benchmark: every sample, the figures derived from the samples, and the JSON format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from qwen_image_engine.runtime.system.memory_use import MemoryUse
from qwen_image_engine.runtime.system.text import size_text
from qwen_image_engine.runtime.tools.bench.case import Case
from qwen_image_engine.runtime.tools.bench.runs import CaseRuns, ContenderRuns
from qwen_image_engine.runtime.tools.bench.settings import Settings
from qwen_image_engine.runtime.tools.bench.stages import Sample

FORMAT = "qwen-image-bench"
SCHEMA = 1


@dataclass(frozen=True)
class ContenderInfo:
    """Facts of a contender: how it was loaded, or why it is missing.

    Attributes:
        name: an engine of the bundle, or a peer.
        role: "engine" or "baseline".
        missing: reason why there are no figures, with the remedy; None if there are figures.
        version: version of the package that computes.
        precision: precision of the networks.
        load_s: seconds from a process that has imported nothing to a process that can draw, without the start of
            Python.
        load_peak: peak memory of the process while loading; None if the system does not report it.
        peak_bytes: largest resident memory of the process so far [bytes]; None if the system does not report it.
        disk_bytes: size of the files that the contender reads [bytes].
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

    def cells(self, seconds: Callable[[float], str]) -> dict[str, str]:
        """Return the texts by column of a contender with figures, for tables of the terminal and of pages."""
        return {
            "way": self.name,
            "role": self.role,
            "version": self.version,
            "precision": self.precision,
            "load": seconds(self.load_s),
            "peak memory": "" if self.peak_bytes is None else size_text(self.peak_bytes),
            "on disk": size_text(self.disk_bytes),
        }


@dataclass(frozen=True)
class Benchmark:
    """A whole benchmark.

    Attributes:
        settings: settings of the benchmark.
        bundle: facts of the bundle: target, precision, checkpoint with its hashes, bytes on disk by folder.
        environment: machine, versions of packages, and the time at which the benchmark began.
        contenders: contenders, missing ones included, engines first.
        cases: cases in the order in which they ran.
    """

    settings: Settings
    bundle: Mapping[str, Any]
    environment: Mapping[str, Any]
    contenders: tuple[ContenderInfo, ...]
    cases: tuple[CaseRuns, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the benchmark as plain JSON: every sample, and the quantiles and ratios computed from the samples."""
        return {
            "format": FORMAT,
            "schema": SCHEMA,
            "command": self.settings.command(),
            "settings": asdict(self.settings),
            "bundle": dict(self.bundle),
            "environment": dict(self.environment),
            "ways": [asdict(contender) for contender in self.contenders],
            "cases": [_case_to_json(case) for case in self.cases],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read the JSON of `to_json`. The caller has checked `format` and `schema`.

        Raises:
            KeyError: a value is missing.
            TypeError: a value has another type than expected, or an unknown name.
            ValueError: a value cannot be converted to the expected type.
        """
        settings = dict(data["settings"])
        settings["sizes"] = tuple((int(width), int(height)) for width, height in settings["sizes"])
        for name in ("engines", "baselines", "steps", "solvers", "batches", "references", "sigmas"):
            if isinstance(settings.get(name), list):
                settings[name] = tuple(settings[name])
        return cls(
            settings=Settings(**settings),
            bundle=data["bundle"],
            environment=data["environment"],
            contenders=tuple(
                ContenderInfo(**{**contender, "load_peak": _memory(contender["load_peak"])})
                for contender in data["ways"]
            ),
            cases=tuple(_case_from_json(case) for case in data["cases"]),
        )


def _case_to_json(found: CaseRuns) -> dict[str, Any]:
    return {
        "case": asdict(found.case),
        "runs": [
            {
                "way": run.contender,
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
        ContenderRuns(
            contender=str(run["way"]),
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
