"""What each linear's quantisation alone does to the step's output: by linear and sigma, by group and by block."""

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
"""Linears of a block, as they are named after its number."""


@dataclass(frozen=True)
class Picture:
    """One that was measured on: its prompt, (width, height) in pixels, seed, and the noise level of each step."""

    prompt: str
    size: tuple[int, int]
    seed: int
    sigmas: tuple[float, ...]


@dataclass(frozen=True)
class Sensitivity:
    """Errors are relative L2 of the step's output against the unquantised network's on the same latents.

    Attributes:
        target: whose quantisation was simulated.
        precision: of it.
        settings: of the calibration, with the device and the versions that measured.
        calibration_sha256: of its tensors.
        pictures: that were measured on.
        alone: by linear, with that one quantised and nothing else.
        together: with all of them quantised.
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
        """Those with quantised linears, in order."""
        return tuple(sorted({_block(name) for name in self.alone}))

    def rms(self, linear: str) -> float:
        """The root of the mean square of a linear's errors."""
        return math.sqrt(mean_square(self.alone[linear]))

    def ranked(self) -> list[str]:
        """The linears, the largest error first."""
        return sorted(self.alone, key=self.rms, reverse=True)

    def of_group(self, group: str) -> list[str]:
        """The linears of one of `GROUPS`, one a block."""
        return [name for name in self.alone if name.endswith(f".{group}")]

    def of_block(self, block: int) -> list[str]:
        """The linears of a block."""
        return [name for name in self.alone if _block(name) == block]

    def summed(self, linears: Collection[str]) -> Errors:
        """What several do together where their errors are independent of one another: squares add up."""
        return tuple(
            tuple(
                math.sqrt(sum(self.alone[name][picture][step] ** 2 for name in linears))
                for step in range(len(self.pictures[picture].sigmas))
            )
            for picture in range(len(self.pictures))
        )

    def by_step(self, linears: Collection[str]) -> list[float]:
        """`summed`, the root of the mean square over the pictures."""
        return [
            math.sqrt(sum(error**2 for error in errors) / len(errors))
            for errors in zip(*self.summed(linears), strict=True)
        ]

    def mean_sigmas(self) -> list[float]:
        """Of each step over the pictures, whose sigmas depend on their sizes."""
        return [
            sum(levels) / len(levels) for levels in zip(*(picture.sigmas for picture in self.pictures), strict=True)
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, with format and schema version; linears in the checkpoint's order."""
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
    """What a bundle's accuracy is judged by: the mean over the schedule, of the worst picture."""
    return max(sum(picture) / len(picture) for picture in errors)


def mean_square(errors: Errors) -> float:
    """Over all steps of all pictures."""
    found = [error**2 for picture in errors for error in picture]
    return sum(found) / len(found)


def _block(linear: str) -> int:
    found = block_index(linear)
    assert found is not None  # of the transformer, every quantised linear is in a block
    return found


def _json(errors: Errors) -> dict[str, Any]:
    return {"relative_l2": [list(picture) for picture in errors]}
