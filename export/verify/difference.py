"""How far one array is from another: relative L2, cosine, max-abs, in float64."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from qwen_image_engine.engines.core.engine import Array


@dataclass(frozen=True)
class Difference:
    """Found against expected.

    Attributes:
        relative_l2: ||found - expected|| / ||expected||; infinite where a value is not finite.
        cosine: of the angle between the two; 0 where a value is not finite.
        max_abs: largest difference of one value, in the tensor's own units.
    """

    relative_l2: float
    cosine: float
    max_abs: float


def difference(found: Array, expected: Array) -> Difference:
    """Compare two arrays of one shape; two arrays of zeros are equal."""
    a, b = np.asarray(found, np.float64).ravel(), np.asarray(expected, np.float64).ravel()
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return Difference(math.inf, 0.0, math.inf)
    if np.array_equal(a, b):
        return Difference(0.0, 1.0, 0.0)
    delta = a - b
    norms = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    return Difference(
        relative_l2=float(np.linalg.norm(delta)) / norms[1] if norms[1] else math.inf,
        cosine=float(a @ b) / (norms[0] * norms[1]) if all(norms) else 0.0,
        max_abs=float(np.abs(delta).max()),
    )


def mean(differences: Iterable[Difference]) -> Difference:
    """The mean of each measure."""
    found = list(differences)
    return Difference(
        relative_l2=sum(item.relative_l2 for item in found) / len(found),
        cosine=sum(item.cosine for item in found) / len(found),
        max_abs=sum(item.max_abs for item in found) / len(found),
    )


def worst(differences: Iterable[Difference]) -> Difference:
    """The worst of each measure."""
    found = list(differences)
    return Difference(
        relative_l2=max(item.relative_l2 for item in found),
        cosine=min(item.cosine for item in found),
        max_abs=max(item.max_abs for item in found),
    )


def finite(value: float) -> float | None:
    """A value as JSON has it: null where it is not finite."""
    return value if math.isfinite(value) else None
