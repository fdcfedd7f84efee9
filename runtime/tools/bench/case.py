"""What is drawn in a benchmark: sizes, steps, images and reference images, and the request of each round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

PROMPT = "a red circle on the left and a blue square on the right on a white background"
_PATCHES = 8


@dataclass(frozen=True)
class Case:
    """One kind of picture.

    Attributes:
        width: pixels.
        height: pixels.
        steps: of the sampler.
        batch: images drawn at once.
        references: how many reference images.
    """

    width: int
    height: int
    steps: int
    batch: int = 1
    references: int = 0

    def __str__(self) -> str:
        images = f", {self.batch} images" if self.batch > 1 else ""
        plural = "image" if self.references == 1 else "images"
        references = f", {self.references} reference {plural}" if self.references else ""
        return f"{self.width}x{self.height}, {self.steps} steps{images}{references}"


@dataclass(frozen=True, eq=False)
class Request:
    """One draw of a case, the same for every way; prompt and reference images are of this draw alone.

    So no way can use what it kept of an earlier one. `resolution` is the side that reference images are fitted to,
    which is theirs already.
    """

    case: Case
    prompt: str
    seed: int
    references: Sequence[Image.Image]
    resolution: int


MAX_DRAWS = 10_000
"""Prompts number their draw with four digits."""


def request(case: Case, number: int, resolution: int) -> Request:
    """The request of a draw; its prompt has as many tokens as every other's, for Qwen's tokenizer splits digits.

    Args:
        case: what to draw.
        number: of the draw, counted through all cases of a benchmark, below `MAX_DRAWS`.
        resolution: side of the reference images.
    """
    pictures = [reference_picture((number, index), resolution) for index in range(case.references)]
    return Request(case, f"{PROMPT}, {number:04d}", number, pictures, resolution)


def reference_picture(seed: Sequence[int], resolution: int) -> Image.Image:
    """An opaque square of soft random colours."""
    patches = np.random.default_rng(seed).integers(0, 256, (_PATCHES, _PATCHES, 3)).astype(np.uint8)
    square = (resolution, resolution)
    return Image.fromarray(patches).resize(square, Image.Resampling.BICUBIC).convert("RGBA")
