"""The measures of how far an array is from another: one table for `verify`, its tables and page, and `compare`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Measure:
    """A number for the difference between two arrays.

    Attributes:
        name: its key in documents.
        heading: of its column in tables.
        compute: the number for found and expected, both flat, finite, of one size and not equal.
        worst: chooses the worst of several numbers: `max`, or `min` if larger is better.
        not_finite: the number if a value of either array is not finite.
        equal: the number if the arrays are equal.
        format: format specification of its text.
        rounding: largest number that rounding of fp32 can explain. `compare` looks only at a measure that has one; its
            `worst` is `max`.
    """

    name: str
    heading: str
    compute: Callable[[Vector, Vector], float]
    worst: Callable[[Iterable[float]], float]
    not_finite: float
    equal: float
    format: str
    rounding: float | None = None

    def text(self, value: float) -> str:
        """Return the text of a number for a person."""
        return f"{value:{self.format}}"


def _relative_l2(found: Vector, expected: Vector) -> float:
    norm = float(np.linalg.norm(expected))
    return float(np.linalg.norm(found - expected)) / norm if norm else math.inf


def _cosine(found: Vector, expected: Vector) -> float:
    norms = float(np.linalg.norm(found)), float(np.linalg.norm(expected))
    return float(found @ expected) / (norms[0] * norms[1]) if all(norms) else 0.0


def _max_abs(found: Vector, expected: Vector) -> float:
    return float(np.abs(found - expected).max())


RELATIVE_L2 = Measure(
    "relative_l2", "relative L2", _relative_l2, max, not_finite=math.inf, equal=0.0, format=".1e", rounding=1e-6
)
"""||found - expected|| / ||expected||: the measure of thresholds, limits and curves. fp32 arithmetic in another order
stays below `rounding`: such numbers differ by factors from version to version, and say nothing
(`export/thresholds.py` holds fp32 to 1e-5)."""

COSINE = Measure("cosine", "cosine", _cosine, min, not_finite=0.0, equal=1.0, format=".9f")
"""Cosine of the angle between the two. A threshold may name the least one."""

MEASURES: Mapping[str, Measure] = {
    measure.name: measure
    for measure in (
        RELATIVE_L2,
        COSINE,
        Measure("max_abs", "max abs", _max_abs, max, not_finite=math.inf, equal=0.0, format=".1e"),
    )
}
"""By name, in the order of keys and columns. Relative L2 comes first. The largest difference of one value, "max_abs",
is in the tensor's own units."""


def other_measures() -> list[Measure]:
    """Return all measures but relative L2, which tables show with its threshold."""
    return [measure for measure in MEASURES.values() if measure is not RELATIVE_L2]


def compared_measures() -> list[Measure]:
    """Return the measures that `compare` looks at."""
    return [measure for measure in MEASURES.values() if measure.rounding is not None]
