"""The search: the fewest linears, in few measurements, whatever the prediction is off by."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from qwen_image_engine.calibration.observe.settings import CheckpointIdentity, Settings
from qwen_image_engine.calibration.sensitivity.search import FoundRecipe, fewest_high
from qwen_image_engine.calibration.sensitivity.sensitivity import Picture, Sensitivity, judged
from qwen_image_engine.calibration.sensitivity.teacher_forcing import Errors
from qwen_image_engine.engines.core.errors import QwenImageError

SIGMAS = (1.0, 0.5)
NAMES = [f"transformer_blocks.{block}.{name}" for block in range(32) for name in ("attn.to_q", "img_mlp.out")]
SETTINGS = Settings(
    CheckpointIdentity("a", "b", "c"), 2, "", 0, "", None, 1.0, (0, 1), 2, ((64, 64),), "fp32", "cpu", {"torch": "2"}
)


def errors(size: float) -> Errors:
    return ((size, 2 * size), (3 * size, size))


def sensitivity(measure: Callable[[tuple[str, ...]], Errors]) -> Sensitivity:
    pictures = (Picture("a", (64, 64), 0, SIGMAS), Picture("b", (64, 64), 1, SIGMAS))
    # From 1e-4 to 0.05; as they stand in the checkpoint, no order of sizes.
    alone = {name: errors(1e-4 * 500 ** ((37 * index % 64) / 63)) for index, name in enumerate(NAMES)}
    return Sensitivity("tensorrt", "fp8", SETTINGS, "d", pictures, alone, measure(tuple(NAMES)))


def search(correlation: float, target: float) -> tuple[FoundRecipe, list[int], Sensitivity]:
    """Errors that add up to `correlation` times what squares do."""
    found = sensitivity(lambda _: ())
    calls: list[int] = []

    def measure(quantised: tuple[str, ...]) -> Errors:
        calls.append(len(quantised))
        return tuple(tuple(correlation * error for error in picture) for picture in found.summed(quantised))

    found = replace(found, together=measure(tuple(NAMES)))
    calls.clear()
    return fewest_high(found, target, measure), calls, found


@pytest.mark.parametrize("correlation", [0.7, 1.0, 1.6])
@pytest.mark.parametrize("target", [0.001, 0.01, 0.05, 0.2])
def test_fewest(correlation: float, target: float) -> None:
    found, calls, measured = search(correlation, target)
    order = sorted(NAMES, key=lambda name: measured.alone[name][0][0], reverse=True)
    enough = [
        count for count in range(len(NAMES) + 1) if correlation * judged(measured.summed(order[count:])) <= target
    ]
    assert list(found.high) == order[: min(enough)]
    assert found.error <= target
    assert len(calls) <= 3
    assert [probe.high for probe in found.probes] == [0, *(len(NAMES) - count for count in calls)]


def test_nothing_high_takes_no_measurement() -> None:
    found, calls, _ = search(1.0, 1.0)
    assert (found.high, calls) == ((), [])
    assert found.rules() == {"rules": [{"linears": "*", "precision": "fp8"}]}


def test_a_prediction_that_says_nothing() -> None:
    measured = sensitivity(lambda _: errors(1.0))
    calls: list[int] = []

    def measure(quantised: tuple[str, ...]) -> Errors:
        calls.append(len(quantised))
        return errors(1.0 if len(quantised) > 11 else 0.001)

    assert len(fewest_high(measured, 0.01, measure).high) == len(NAMES) - 11
    assert len(calls) <= 3 + math.ceil(math.log2(len(NAMES)))


def test_all_high() -> None:
    with pytest.raises(QwenImageError, match=r"keeps every one of the 64 linears high: transformer_blocks\.\d+\.\S+,"):
        search(1.0, 1e-5)


def test_judged_by_the_worst_picture() -> None:
    assert judged(((0.1, 0.3), (0.1, 0.2))) == pytest.approx(0.2)
