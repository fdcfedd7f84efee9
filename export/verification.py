"""The result of verifying a bundle: one row for each component and case, and the JSON that keeps it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from qwen_image_engine.export.compare import Difference


@dataclass(frozen=True)
class Row:
    """One component on one case.

    Attributes:
        component: as in the contract, or "teacher_forced" for whole steps.
        case: name of the request.
        difference: the worst over outputs, and over steps.
        threshold: the largest relative L2 that passes.
        steps: relative L2 of each step, where the row is of several.
    """

    component: str
    case: str
    difference: Difference
    threshold: float
    steps: tuple[float, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether relative L2 is within the threshold."""
        return self.difference.relative_l2 <= self.threshold

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; a value that is not finite is null."""
        return {
            "case": self.case,
            "passed": self.passed,
            "relative_l2": _finite(self.difference.relative_l2),
            "cosine": _finite(self.difference.cosine),
            "max_abs": _finite(self.difference.max_abs),
            **({"relative_l2_by_step": [_finite(value) for value in self.steps]} if self.steps else {}),
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
            "threshold": rows[0].threshold,
            "relative_l2": _finite(max(row.difference.relative_l2 for row in rows)),
            "cosine": _finite(min(row.difference.cosine for row in rows)),
            "max_abs": _finite(max(row.difference.max_abs for row in rows)),
            "cases": [row.to_json() for row in rows],
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
