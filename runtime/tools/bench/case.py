"""The cases of a benchmark: sizes, steps, images and reference images, and the request of each round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from qwen_image_engine.runtime.sampling.spacing import ChosenLevels
from qwen_image_engine.runtime.system.text import plural

PROMPT = "a red circle on the left and a blue square on the right on a white background"
_PATCHES = 8


@dataclass(frozen=True)
class Case:
    """A kind of picture to draw.

    Attributes:
        width: width of the picture [pixels].
        height: height of the picture [pixels].
        steps: steps of the sampler.
        batch: number of images drawn at once.
        references: number of reference images.
        solver: name of the solver.
        sigmas: noise levels or the name of a spacing; None for the checkpoint's own.
    """

    width: int
    height: int
    steps: int
    batch: int = 1
    references: int = 0
    solver: str = "euler"
    sigmas: ChosenLevels = None

    def __post_init__(self) -> None:
        """Turn levels that were read from JSON into a tuple."""
        if isinstance(self.sigmas, list):
            object.__setattr__(self, "sigmas", tuple(self.sigmas))

    def __str__(self) -> str:
        images = f", {self.batch} images" if self.batch > 1 else ""
        references = f", {plural(self.references, 'reference image')}" if self.references else ""
        solver = "" if self.solver == "euler" else f" of {self.solver}"
        spacing = "" if self.sigmas is None else f", {self.sigmas if isinstance(self.sigmas, str) else 'given'} sigmas"
        return f"{self.width}x{self.height}, {plural(self.steps, 'step')}{solver}{spacing}{images}{references}"


@dataclass(frozen=True, eq=False)
class Request:
    """The request for one draw of a case, the same for every contender.

    No other draw has the same prompt or reference images, so no contender can reuse cached values of an earlier draw.
    `resolution` is the side that reference images are fitted to; they have this side already.
    """

    case: Case
    prompt: str
    seed: int
    references: Sequence[Image.Image]
    resolution: int


MAX_DRAWS = 10_000
"""Limit of draws: prompts contain the number of the draw with four digits."""


def request(case: Case, number: int, resolution: int) -> Request:
    """Return the request of a draw.

    Prompts of all draws have the same number of tokens, because Qwen's tokenizer splits digits.

    Args:
        case: the case to draw.
        number: number of the draw, counted through all cases of a benchmark, below `MAX_DRAWS`.
        resolution: side of the reference images [pixels].
    """
    pictures = [reference_picture((number, index), resolution) for index in range(case.references)]
    return Request(case, f"{PROMPT}, {number:04d}", number, pictures, resolution)


def reference_picture(seed: Sequence[int], resolution: int) -> Image.Image:
    """Return an opaque square of soft random colours."""
    patches = np.random.default_rng(seed).integers(0, 256, (_PATCHES, _PATCHES, 3)).astype(np.uint8)
    square = (resolution, resolution)
    return Image.fromarray(patches).resize(square, Image.Resampling.BICUBIC).convert("RGBA")
