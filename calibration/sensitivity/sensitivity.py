"""Errors of the step's output from the quantisation of each linear alone: by linear and sigma, by group, by block."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from qwen_image_engine.calibration.observe.settings import Settings
from qwen_image_engine.calibration.rules.linears import LINEARS, block_index
from qwen_image_engine.calibration.sensitivity.simulation import TRANSFORMER
from qwen_image_engine.calibration.sensitivity.teacher_forcing import Errors

FORMAT = "qwen-image-sensitivity"
SCHEMA = 1

GROUPS = LINEARS[TRANSFORMER].names
"""Names of the linears of a block: the part after the block's number."""


@dataclass(frozen=True)
class Picture:
    """A picture of the measurement.

    Attributes:
        prompt: prompt of the picture.
        size: (width, height) in pixels.
        seed: seed of the noise.
        sigmas: noise level of each step.
    """

    prompt: str
    size: tuple[int, int]
    seed: int
    sigmas: tuple[float, ...]


@dataclass(frozen=True)
class Sensitivity:
    """The sensitivity of every linear to quantisation.

    Errors are relative L2 of the step's output against the output of the unquantised network on the same latents.

    Attributes:
        target: target whose quantisation was simulated.
        precision: precision of the target.
        settings: settings of the calibration, but device and versions of the measurement.
        calibration_sha256: SHA-256 of the calibration's tensors.
        pictures: pictures of the measurement.
        alone: errors by linear with only this linear quantised.
        together: errors with all linears quantised.
    """

    target: str
    precision: str
    settings: Settings
    calibration_sha256: str
    pictures: tuple[Picture, ...]
    alone: Mapping[str, Errors]
    together: Errors

    @property
    def blocks(self) -> tuple[int, ...]:
        """Numbers of the blocks with quantised linears, in order."""
        return tuple(sorted({_block(name) for name in self.alone}))

    def rms(self, linear: str) -> float:
        """Return the root mean square of a linear's errors."""
        return math.sqrt(mean_square(self.alone[linear]))

    def ranked(self) -> list[str]:
        """Return the linears, the largest error first."""
        return sorted(self.alone, key=self.rms, reverse=True)

    def of_group(self, group: str) -> list[str]:
        """Return the linears of one of `GROUPS`, one for each block."""
        return [name for name in self.alone if name.endswith(f".{group}")]

    def of_block(self, block: int) -> list[str]:
        """Return the linears of a block."""
        return [name for name in self.alone if _block(name) == block]

    def summed(self, linears: Collection[str]) -> Errors:
        """Return the errors of several linears together if their errors are independent: the squares add up."""
        return tuple(
            tuple(
                math.sqrt(sum(self.alone[name][picture][step] ** 2 for name in linears))
                for step in range(len(self.pictures[picture].sigmas))
            )
            for picture in range(len(self.pictures))
        )

    def by_step(self, linears: Collection[str]) -> list[float]:
        """Return the root mean square over the pictures of `summed`, for each step."""
        return [
            math.sqrt(sum(error**2 for error in errors) / len(errors))
            for errors in zip(*self.summed(linears), strict=True)
        ]

    def mean_sigmas(self) -> list[float]:
        """Return the mean sigma of each step over the pictures. Sigmas depend on the size of the picture."""
        return [
            sum(levels) / len(levels) for levels in zip(*(picture.sigmas for picture in self.pictures), strict=True)
        ]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON with format and schema version. Linears are in the checkpoint's order."""
        return {
            "format": FORMAT,
            "schema": SCHEMA,
            "target": self.target,
            "precision": self.precision,
            "checkpoint": asdict(self.settings.checkpoint),
            "calibration_sha256": self.calibration_sha256,
            "guidance": self.settings.guidance,
            "dtype": self.settings.dtype,
            "device": self.settings.device,
            "versions": dict(self.settings.versions),
            "pictures": [asdict(picture) for picture in self.pictures],
            "together": {
                "judged": judged(self.together),
                "predicted": judged(self.summed(self.alone)),
                **_json(self.together),
            },
            "groups": {group: self._summary(self.of_group(group)) for group in GROUPS if self.of_group(group)},
            "blocks": {str(block): self._summary(self.of_block(block)) for block in self.blocks},
            "linears": {name: {"rms": self.rms(name), **_json(errors)} for name, errors in self.alone.items()},
        }

    def _summary(self, linears: Collection[str]) -> dict[str, Any]:
        return {
            "linears": len(linears),
            "rms": math.sqrt(mean_square(self.summed(linears))),
            "rms_by_step": self.by_step(linears),
            "worst": max(linears, key=self.rms),
        }


def judged(errors: Errors) -> float:
    """Return the error that a bundle's accuracy is judged by: the mean over the schedule of the worst picture."""
    return max(sum(picture) / len(picture) for picture in errors)


def mean_square(errors: Errors) -> float:
    """Return the mean square of the errors over all steps of all pictures."""
    found = [error**2 for picture in errors for error in picture]
    return sum(found) / len(found)


def _block(linear: str) -> int:
    found = block_index(linear)
    assert found is not None  # of the transformer, every quantised linear is in a block
    return found


def _json(errors: Errors) -> dict[str, Any]:
    return {"relative_l2": [list(picture) for picture in errors]}
