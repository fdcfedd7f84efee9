"""The distance of one picture from another: PSNR of colours and of opacity, and NVIDIA's FLIP."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import mean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen_image_engine.engines.core.errors import QwenImageError, one_line, pass_interruption

INSTALL = "pip install 'qwen-image-engine[report]'"
PACKAGE = "flip-evaluator"


CEILING = 100.0
"""PSNR of equal pictures, and the most that counts [dB]. One byte in 100,000 pixels that is off by one is as much."""


@dataclass(frozen=True)
class Distance:
    """The distance of a picture from another one of the same size.

    Attributes:
        psnr_rgb: peak signal-to-noise ratio of red, green and blue over white, at most `CEILING` [dB].
        psnr_alpha: the same of the opacity [dB].
        flip: mean of LDR-FLIP over white, 0 to 1, at the package's own viewing distance (67 pixels per degree).
        latents: relative L2 of the final latents, which no rounding to bytes hides.
    """

    psnr_rgb: float
    psnr_alpha: float
    flip: float
    latents: float


@dataclass(frozen=True)
class Figures:
    """The distances of several pictures together.

    Attributes:
        psnr_rgb: mean PSNR of the colours [dB].
        psnr_rgb_worst: least PSNR of the colours [dB].
        psnr_alpha: mean PSNR of the opacity [dB].
        flip: mean FLIP.
        flip_worst: largest FLIP.
        latents: mean relative L2 of the final latents.
    """

    psnr_rgb: float
    psnr_rgb_worst: float
    psnr_alpha: float
    flip: float
    flip_worst: float
    latents: float

    @classmethod
    def of(cls, distances: Iterable[Distance]) -> Figures:
        """Return the figures of at least one picture. Each picture counts as much, whatever its size."""
        items = list(distances)
        return cls(
            psnr_rgb=mean(item.psnr_rgb for item in items),
            psnr_rgb_worst=min(item.psnr_rgb for item in items),
            psnr_alpha=mean(item.psnr_alpha for item in items),
            flip=mean(item.flip for item in items),
            flip_worst=max(item.flip for item in items),
            latents=mean(item.latents for item in items),
        )


def check_flip() -> None:
    """Raise if FLIP cannot be computed.

    Raises:
        QwenImageError: the package flip-evaluator is not installed or does not load.
    """
    _flip_evaluator()


def distance(
    found: tuple[NDArray[np.uint8], NDArray[np.float32]], expected: tuple[NDArray[np.uint8], NDArray[np.float32]]
) -> Distance:
    """Compare two pictures, each (height, width, 4) uint8 with straight alpha and its final latents."""
    own, other = (over_white(rgba) for rgba, _ in (found, expected))
    opacity = [rgba[..., 3] / 255 for rgba, _ in (found, expected)]
    return Distance(
        psnr_rgb=psnr(own, other),
        psnr_alpha=psnr(*opacity),
        flip=flip(own, other),
        latents=float(np.linalg.norm(found[1] - expected[1]) / np.linalg.norm(expected[1])),
    )


def over_white(rgba: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the colours (height, width, 3), 0 to 1, of a picture with straight alpha that lies on white."""
    opacity = rgba[..., 3:] / 255
    return rgba[..., :3] / 255 * opacity + (1 - opacity)


def psnr(found: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    """Return the PSNR, 10 log10(1 / mean squared error), of values from 0 to 1, at most `CEILING` [dB]."""
    squared = float(np.mean(np.square(found - expected)))
    return min(CEILING, -10 * math.log10(squared)) if squared else CEILING


def flip(found: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    """Return the mean LDR-FLIP (Andersson et al. 2020) of two pictures (height, width, 3) in sRGB, 0 to 1.

    Raises:
        QwenImageError: the package flip-evaluator is not installed or does not load.
    """
    pictures = (np.ascontiguousarray(values, np.float32) for values in (expected, found))
    _, average, _ = _flip_evaluator().evaluate(*pictures, "LDR", applyMagma=False)
    return float(average)


def _flip_evaluator() -> Any:
    try:
        return importlib.import_module("flip_evaluator")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "flip_evaluator":
            raise
        raise QwenImageError(
            f"{PACKAGE} is not installed, and --pictures measures with it; install it with: {INSTALL}"
        ) from None
    except (ImportError, OSError) as error:
        pass_interruption(error)
        raise QwenImageError(f"{PACKAGE} does not load ({one_line(error)}); install it again: {INSTALL}") from error
