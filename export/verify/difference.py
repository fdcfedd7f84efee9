"""The difference between two arrays by every measure of `runtime/tools/compare/measures.py`, in float64."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from qwen_image_engine.engines.core.engine import Array
from qwen_image_engine.runtime.tools.compare.measures import COSINE, MEASURES, RELATIVE_L2, Measure


@dataclass(frozen=True)
class Difference:
    """The difference of an array found from an array expected.

    Attributes:
        values: value of each measure, by the names of `MEASURES` and in their order.
    """

    values: Mapping[str, float]

    @property
    def relative_l2(self) -> float:
        """Relative L2, ||found - expected|| / ||expected||; infinite if a value is not finite."""
        return self.values[RELATIVE_L2.name]

    @property
    def cosine(self) -> float:
        """Cosine of the angle between the two; 0 if a value is not finite."""
        return self.values[COSINE.name]

    @property
    def is_finite(self) -> bool:
        """Whether all values of both arrays are finite."""
        return math.isfinite(self.values["max_abs"])

    def texts(self, measures: Iterable[Measure]) -> list[str]:
        """Return the text of each measure for a person."""
        return [measure.text(self.values[measure.name]) for measure in measures]

    def to_json(self) -> dict[str, float | None]:
        """Return plain JSON; a value that is not finite is null."""
        return {name: finite(value) for name, value in self.values.items()}


def difference(found: Array, expected: Array) -> Difference:
    """Compare two arrays of one shape; two arrays of zeros are equal."""
    a, b = np.asarray(found, np.float64).ravel(), np.asarray(expected, np.float64).ravel()
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return Difference({name: measure.not_finite for name, measure in MEASURES.items()})
    if np.array_equal(a, b):
        return Difference({name: measure.equal for name, measure in MEASURES.items()})
    return Difference({name: measure.compute(a, b) for name, measure in MEASURES.items()})


def mean(differences: Iterable[Difference]) -> Difference:
    """Return the mean of each measure."""
    items = list(differences)
    return Difference({name: sum(item.values[name] for item in items) / len(items) for name in MEASURES})


def worst(differences: Iterable[Difference]) -> Difference:
    """Return the worst of each measure."""
    items = list(differences)
    return Difference({name: measure.worst(item.values[name] for item in items) for name, measure in MEASURES.items()})


def finite(value: float) -> float | None:
    """Return a value as JSON has it: null if it is not finite."""
    return value if math.isfinite(value) else None
