"""The result of verifying a bundle: one row for each component and case, and the JSON that keeps it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from qwen_image_engine.export.compare import Difference, mean, worst
from qwen_image_engine.export.thresholds import Threshold


@dataclass(frozen=True)
class Row:
    """One component on one case.

    Attributes:
        component: as in the contract, or "teacher_forced" for whole steps.
        case: name of the request.
        runs: one for each step, each the worst over outputs; one where the component runs once.
        threshold: what they are held to.
    """

    component: str
    case: str
    runs: tuple[Difference, ...]
    threshold: Threshold

    @property
    def worst(self) -> Difference:
        """The worst run."""
        return worst(self.runs)

    @property
    def judged(self) -> Difference:
        """What the threshold is for: the worst run, or the mean of them."""
        return mean(self.runs) if self.threshold.over == "mean" else self.worst

    @property
    def passed(self) -> bool:
        """Whether that is within the threshold."""
        least = self.threshold.cosine
        enough = least is None or self.judged.cosine >= least
        return self.judged.relative_l2 <= self.threshold.relative_l2 and enough

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; a value that is not finite is null."""
        return {
            "case": self.case,
            "passed": self.passed,
            **_measures(self.judged),
            **({"worst_step": _measures(self.worst)} if self.threshold.over == "mean" else {}),
            **({"relative_l2_by_step": [_finite(run.relative_l2) for run in self.runs]} if len(self.runs) > 1 else {}),
        }


@dataclass(frozen=True)
class Verification:
    """All rows of one bundle on one engine.

    Attributes:
        engine: the backend.
        engine_version: of its package.
        precision: of the bundle.
        checkpoint: its name.
        config_sha256: of the checkpoint.
        weights_sha256: of the checkpoint.
        files: of the bundle, all of whose hashes were right.
        rows: in the order they ran.
    """

    engine: str
    engine_version: str
    precision: str
    checkpoint: str
    config_sha256: str
    weights_sha256: str
    files: int
    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        """Whether every row did."""
        return all(row.passed for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """`{"passed": …, "components": [...]}`: for each component the worst measures, and each case's."""
        return {
            "passed": self.passed,
            "engine": self.engine,
            "engine_version": self.engine_version,
            "precision": self.precision,
            "checkpoint": self.checkpoint,
            "config_sha256": self.config_sha256,
            "weights_sha256": self.weights_sha256,
            "files": self.files,
            "components": [self._component(name) for name in dict.fromkeys(row.component for row in self.rows)],
        }

    def _component(self, name: str) -> dict[str, Any]:
        rows = [row for row in self.rows if row.component == name]
        return {
            "component": name,
            "passed": all(row.passed for row in rows),
            "threshold": rows[0].threshold.relative_l2,
            "least_cosine": rows[0].threshold.cosine,
            "judged_by": rows[0].threshold.over,
            **_measures(worst(row.judged for row in rows)),
            "cases": [row.to_json() for row in rows],
        }


def _measures(difference: Difference) -> dict[str, float | None]:
    return {name: _finite(value) for name, value in asdict(difference).items()}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
