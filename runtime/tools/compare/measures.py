"""The measures of the difference between two arrays: one table for `verify`, its tables and page, and `compare`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Measure:
    """A measure of the difference between two arrays.

    Attributes:
        name: the measure's key in documents.
        heading: the heading of the measure's column in tables.
        compute: function of found and expected values; both arrays are flat, finite, of one size and not equal.
        worst: function that chooses the worst of several numbers: `max`, or `min` if larger is better.
        not_finite: the number if a value of either array is not finite.
        equal: the number if the arrays are equal.
        format: format specification of the number's text.
        rounding: largest number that rounding of fp32 can explain; None if `compare` ignores the measure. A measure
            with `rounding` has `max` as `worst`.
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
stays below `rounding`. Numbers below it differ by factors from version to version and have no meaning. The threshold
of fp32 is 1e-5, see `export/thresholds.py`."""

COSINE = Measure("cosine", "cosine", _cosine, min, not_finite=0.0, equal=1.0, format=".9f")
"""Cosine of the angle between the two arrays. A threshold may set the smallest allowed cosine."""

MEASURES: Mapping[str, Measure] = {
    measure.name: measure
    for measure in (
        RELATIVE_L2,
        COSINE,
        Measure("max_abs", "max abs", _max_abs, max, not_finite=math.inf, equal=0.0, format=".1e"),
    )
}
"""All measures by name, in the order of keys and columns. Relative L2 comes first. The measure "max_abs" is the
largest difference of one value, in the tensor's own units."""


def other_measures() -> list[Measure]:
    """Return all measures except relative L2. Tables show relative L2 with its threshold."""
    return [measure for measure in MEASURES.values() if measure is not RELATIVE_L2]


def compared_measures() -> list[Measure]:
    """Return the measures that `compare` reads."""
    return [measure for measure in MEASURES.values() if measure.rounding is not None]
