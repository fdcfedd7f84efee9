"""The search for the recipe that reaches a target error with the fewest linears kept high.

Errors of separate linears are nearly independent, so their squares nearly add up. The squares rank the linears, and
sums of squares predict the error that remains if the worst linears are kept high. Measurements in the simulation
correct the prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qwen_image_engine.calibration.rules.quantisation import HIGH
from qwen_image_engine.calibration.sensitivity.sensitivity import Sensitivity, judged
from qwen_image_engine.calibration.sensitivity.teacher_forcing import Errors
from qwen_image_engine.engines.core.errors import QwenImageError

_PREDICTED_RUNS = 4
"""Number of measurements at a predicted count. After these, the search continues by bisection."""


@dataclass(frozen=True)
class Probe:
    """A measurement of the search: the number of linears kept high, and the error with all others quantised."""

    high: int
    error: float


@dataclass(frozen=True)
class FoundRecipe:
    """The result of a search.

    Attributes:
        precision: precision of the quantised linears.
        target_error: requested error.
        high: linears kept high, the most sensitive first.
        linears: number of all linears.
        errors: errors with all other linears quantised.
        probes: every measurement, in order.
    """

    precision: str
    target_error: float
    high: tuple[str, ...]
    linears: int
    errors: Errors
    probes: tuple[Probe, ...]

    @property
    def error(self) -> float:
        """Error that the target limits, see `judged`."""
        return judged(self.errors)

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain JSON."""
        return {
            "target_error": self.target_error,
            "error": self.error,
            "high": list(self.high),
            "linears": self.linears,
            "relative_l2": [list(picture) for picture in self.errors],
            "probes": [asdict(probe) for probe in self.probes],
        }

    def rules(self) -> dict[str, Any]:
        """Return the rules for `QuantisationRecipe.read`: high linears by name, then a rule for all others."""
        return {
            "rules": [
                *({"linears": name, "precision": HIGH} for name in self.high),
                {"linears": "*", "precision": self.precision},
            ]
        }


def fewest_high(
    sensitivity: Sensitivity, target_error: float, measure: Callable[[tuple[str, ...]], Errors]
) -> FoundRecipe:
    """Find the fewest of the most sensitive linears to keep high for an error of at most `target_error`.

    Args:
        sensitivity: sensitivity that ranks the linears. `sensitivity.together` is the first measurement.
        target_error: relative L2, teacher-forced: the mean over the schedule of the worst picture.
        measure: function that returns the errors with the given linears quantised.

    Raises:
        QwenImageError: the target error is not reached even with only the least sensitive linear quantised.
    """
    order = sensitivity.ranked()
    predicted = [judged(sensitivity.summed(order[count:])) for count in range(len(order) + 1)]
    fails, holds, reached = -1, len(order), None
    count, errors = 0, sensitivity.together
    probes: list[Probe] = []
    while True:
        probes.append(Probe(count, judged(errors)))
        if probes[-1].error <= target_error:
            holds, reached = count, errors
        else:
            fails = count
        if holds - fails <= 1:
            break
        count = _next_count(predicted, probes, target_error, fails, holds)
        errors = measure(tuple(order[count:]))
    if reached is None:
        raise QwenImageError(
            f"--target-error {target_error:g} keeps every one of the {len(order)} linears high: {order[-1]}, the least "
            f"sensitive, costs {probes[-1].error:.3g} alone in {sensitivity.precision}; ask for more than that"
        )
    high = tuple(order[:holds])
    return FoundRecipe(sensitivity.precision, target_error, high, len(order), reached, tuple(probes))


def _next_count(
    predicted: Sequence[float], probes: Sequence[Probe], target_error: float, fails: int, holds: int
) -> int:
    """Return a count strictly between `fails` and `holds`."""
    if len(probes) > _PREDICTED_RUNS:
        return (fails + holds) // 2
    last = probes[-1]
    correction = last.error / predicted[last.high] if predicted[last.high] else 1.0
    guess = next(count for count, error in enumerate(predicted) if error * correction <= target_error)
    return min(max(guess, fails + 1), holds - 1)
