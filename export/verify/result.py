"""The result of verifying bundles: one row for each component and case, other measurements, and their JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from qwen_image_engine.export.thresholds import Threshold
from qwen_image_engine.export.verify.difference import Difference, finite, mean, worst
from qwen_image_engine.export.verify.free_running import DrawnCase, FreeRunning
from qwen_image_engine.export.verify.judge import PictureScores
from qwen_image_engine.export.verify.layers import Layers
from qwen_image_engine.export.verify.limits import Limit
from qwen_image_engine.export.verify.recording import Recording
from qwen_image_engine.runtime.tools.compare.measures import COSINE, RELATIVE_L2, other_measures

FORMAT = "qwen-image-verify"
SCHEMA = 1


@dataclass(frozen=True)
class Row:
    """The differences of one component on one case.

    Attributes:
        component: name in the contract, or "teacher_forced" for whole steps.
        case: name of the request.
        runs: differences, one for each step and each the worst over outputs; one if the component runs once.
        threshold: threshold that the runs are compared with.
        sigmas: sigma of each step; empty if the runs are no steps.
    """

    component: str
    case: str
    runs: tuple[Difference, ...]
    threshold: Threshold
    sigmas: tuple[float, ...] = ()

    @property
    def worst(self) -> Difference:
        """Worst of each measure over the runs."""
        return worst(self.runs)

    @property
    def judged(self) -> Difference:
        """Difference that the threshold is for: the worst run, or the mean of the runs."""
        return mean(self.runs) if self.threshold.over == "mean" else self.worst

    @property
    def passed(self) -> bool:
        """Whether the judged difference is within the threshold."""
        least = self.threshold.cosine
        enough = least is None or self.judged.cosine >= least
        return self.judged.relative_l2 <= self.threshold.relative_l2 and enough

    def cells(self) -> dict[str, str]:
        """Return the row's texts by column, for tables of the terminal and of pages.

        A quantised bundle's steps are judged by their mean; the worst step has a column of its own.
        """
        limit = self.threshold
        share = self.judged.relative_l2 / limit.relative_l2
        cells = {
            "component": self.component,
            "case": self.case,
            RELATIVE_L2.heading: RELATIVE_L2.text(self.judged.relative_l2),
            "threshold": f"{limit.relative_l2:.0e}",
            "of it": f"{share:.0%}" if math.isfinite(share) and share < 100 else f"{share:.0f}x",
            "worst step": RELATIVE_L2.text(self.worst.relative_l2) if len(self.runs) > 1 else "",
        }
        for measure in other_measures():
            (cells[measure.heading],) = self.judged.texts([measure])
            if measure is COSINE:
                cells["least"] = "" if limit.cosine is None else f"{limit.cosine:g}"
        return cells

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON; a value that is not finite is null."""
        return {
            "case": self.case,
            "passed": self.passed,
            **self.judged.to_json(),
            **({"worst_step": self.worst.to_json()} if self.threshold.over == "mean" else {}),
            **({"sigma_by_step": list(self.sigmas)} if self.sigmas else {}),
            **({"relative_l2_by_step": [finite(run.relative_l2) for run in self.runs]} if len(self.runs) > 1 else {}),
        }


@dataclass(frozen=True)
class NotFiniteOutput:
    """The first component whose output is not finite although the reference's inputs are.

    Attributes:
        component: name of the component, or "teacher_forced" if each component alone is finite.
        case: name of the request.
        file: name in the bundle of the weight file with a value that is not finite; None if all weights are finite.
        tensor: name of the tensor in the file; None if all weights are finite.
    """

    component: str
    case: str
    file: str | None = None
    tensor: str | None = None

    def __str__(self) -> str:
        cause = (
            "its weights are finite, so that a product overflows"
            if self.tensor is None
            else f"tensor {self.tensor!r} of {self.file} is not finite"
        )
        return f"values that are not finite come first out of {self.component} ({self.case}): {cause}"


@dataclass(frozen=True)
class RecordedCase:
    """A request as it was recorded, without the reference images themselves."""

    name: str
    prompt: str
    width: int
    height: int
    seed: int
    references: int
    steps: int

    @classmethod
    def of(cls, recording: Recording) -> RecordedCase:
        """Return the request of a recording."""
        case, steps = recording.case, len(recording.steps)
        return cls(case.name, case.prompt, case.width, case.height, case.seed, len(case.references), steps)


@dataclass(frozen=True)
class Verification:
    """The rows of one bundle on one engine, and the other measurements of that bundle.

    Attributes:
        bundle: folder of the bundle.
        target: target of the bundle.
        precision: precision of the bundle.
        engine: name of the backend.
        engine_version: version of the backend's package.
        checkpoint: name of the checkpoint.
        config_sha256: SHA-256 of the checkpoint's configuration.
        weights_sha256: SHA-256 of the checkpoint's weights.
        files: number of the bundle's files, all of whose hashes were right.
        cases: requests that were recorded.
        rows: rows, in the order in which they ran.
        limits: limits of the caller for rows, beside their thresholds.
        free_running: the engine's own trajectories, one for each case.
        layers: errors by layer; None if not requested.
        judged: scores by the judge of `shapes`, by kind of prompt; empty if not requested.
        not_finite: where values that are not finite come from; None if every output is finite.
        pictures: pictures of every case, for a report; empty if not requested, and never in the JSON.
        not_recorded: why the bundle's manifest does not hold this result; None if it does.
    """

    bundle: str
    target: str
    precision: str
    engine: str
    engine_version: str
    checkpoint: str
    config_sha256: str
    weights_sha256: str
    files: int
    cases: tuple[RecordedCase, ...]
    rows: tuple[Row, ...]
    limits: tuple[Limit, ...] = ()
    free_running: tuple[FreeRunning, ...] = ()
    layers: Layers | None = None
    judged: tuple[PictureScores, ...] = ()
    not_finite: NotFiniteOutput | None = None
    pictures: tuple[DrawnCase, ...] = ()
    not_recorded: str | None = None

    @property
    def passed(self) -> bool:
        """Whether every row passed and every limit holds."""
        return all(row.passed for row in self.rows) and all(map(self.holds, self.limits))

    def judged_error(self, component: str) -> float:
        """Return the relative L2 that a component's threshold is for, the worst of all cases."""
        return max(row.judged.relative_l2 for row in self.rows if row.component == component)

    def holds(self, limit: Limit) -> bool:
        """Return whether a row is within a limit."""
        return self.judged_error(limit.row) <= limit.relative_l2

    def to_json(self) -> dict[str, Any]:
        """Return `{"format": …, "passed": …, "components": [...]}`.

        A component has the worst of each measure, and the measures of each case.
        """
        return {
            "format": FORMAT,
            "schema": SCHEMA,
            "passed": self.passed,
            "bundle": self.bundle,
            "target": self.target,
            "precision": self.precision,
            "engine": self.engine,
            "engine_version": self.engine_version,
            "checkpoint": self.checkpoint,
            "config_sha256": self.config_sha256,
            "weights_sha256": self.weights_sha256,
            "files": self.files,
            "cases": [asdict(case) for case in self.cases],
            "components": [self._component(name) for name in dict.fromkeys(row.component for row in self.rows)],
            "limits": [
                asdict(limit) | {"found": finite(self.judged_error(limit.row)), "passed": self.holds(limit)}
                for limit in self.limits
            ],
            "free_running": [item.to_json() for item in self.free_running],
            "layers": None if self.layers is None else self.layers.to_json(),
            "judged": [item.to_json() for item in self.judged],
            **({} if self.not_recorded is None else {"not_recorded": self.not_recorded}),
            "not_finite": None if self.not_finite is None else asdict(self.not_finite),
        }

    def _component(self, name: str) -> dict[str, Any]:
        rows = [row for row in self.rows if row.component == name]
        return {
            "component": name,
            "passed": all(row.passed for row in rows),
            "threshold": rows[0].threshold.relative_l2,
            "least_cosine": rows[0].threshold.cosine,
            "judged_by": rows[0].threshold.over,
            **worst(row.judged for row in rows).to_json(),
            "cases": [row.to_json() for row in rows],
        }


@dataclass(frozen=True)
class Verifications:
    """The results of bundles of one checkpoint against one recording, in the order in which they were named.

    Attributes:
        bundles: result of each bundle.
        command: command with the same options; "" for a result that was put together.
        environment: machine, versions of packages, and start time; neither the environment nor the command is in the
            JSON.
    """

    bundles: tuple[Verification, ...]
    command: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every bundle passed."""
        return all(bundle.passed for bundle in self.bundles)

    def to_json(self) -> dict[str, Any]:
        """Return one bundle's own document, or `{"format": …, "passed": …, "bundles": [...]}`.

        The latter has the document of each bundle.
        """
        documents = [bundle.to_json() for bundle in self.bundles]
        if len(documents) == 1:
            return documents[0]
        return {"format": FORMAT, "schema": SCHEMA, "passed": self.passed, "bundles": documents}


def side_by_side(bundles: Sequence[Verification]) -> dict[tuple[str, str], list[Row | None]]:
    """Return the rows of each component and case, one for each bundle; None if a bundle cannot do the case."""
    by_bundle = [{(row.component, row.case): row for row in bundle.rows} for bundle in bundles]
    return {
        key: [rows.get(key) for rows in by_bundle] for key in dict.fromkeys(key for rows in by_bundle for key in rows)
    }


def verdict_text(bundle: Verification) -> str:
    """Return the verdict on a bundle in one line."""
    failed = sum(not row.passed for row in bundle.rows)
    broken = sum(not bundle.holds(limit) for limit in bundle.limits)
    verdict = "every row is within its threshold"
    if failed:
        verdict = f"{failed} of {len(bundle.rows)} rows are beyond their thresholds"
        most = None if bundle.layers is None else bundle.layers.grows_most_at
        if most is not None:
            times = f"{most.growth:.0f} times" if math.isfinite(most.growth) else "without end"
            verdict += f", and the error grows most at {most.name}, {times}"
    if bundle.not_finite is not None:
        verdict += f"; {bundle.not_finite}"
    if broken:
        verdict += f"; {broken} of {len(bundle.limits)} limits of --fail-on are broken"
    return f"{verdict} ({bundle.engine} {bundle.engine_version}, {bundle.precision})"
