"""Edits inside a mask by the reference pipeline, on the small checkpoint of this repository, which can edit."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from qwen_image_engine.reference.pipeline import reference_pipeline
from qwen_image_engine.runtime.pipeline import QwenImage
from tests.support.images import mask_of
from tests.support.paths import SHAPES

SIDE = 128
DRAWN: dict[str, Any] = {"width": SIDE, "height": SIDE, "steps": 12, "seed": 3}
PROMPT = "a red circle on the left and a blue square on the right on a white background"
CHANGE = "Make the circle on the left green."
LEFT, RIGHT = np.s_[:, : SIDE // 2], np.s_[:, SIDE // 2 :]
EDIT: dict[str, Any] = {"reference_resolution": SIDE, "steps": 12, "seed": 3}


@pytest.fixture(scope="module")
def pipeline() -> QwenImage:
    return reference_pipeline(SHAPES)


@pytest.fixture(scope="module")
def original(pipeline: QwenImage) -> Image.Image:
    return pipeline.generate(PROMPT, **DRAWN)[0].to_pil()


def mask(*open_: Any) -> Image.Image:
    alpha = np.full((SIDE, SIDE), 255, np.uint8)
    for part in open_:
        alpha[part] = 0
    return mask_of(alpha)


def reds_and_greens(rgba: NDArray[np.uint8]) -> tuple[int, int]:
    """The numbers of pixels that are clearly red and clearly green."""
    red, green, blue = (rgba[..., channel].astype(int) for channel in range(3))
    return int((red > np.maximum(green, blue) + 60).sum()), int((green > np.maximum(red, blue) + 60).sum())


@pytest.mark.parametrize("solver", ["euler", "heun", "unipc"])
def test_an_edit_of_one_half(pipeline: QwenImage, original: Image.Image, solver: str) -> None:
    """The circle has about 1,000 pixels."""
    before = np.asarray(original)
    options: dict[str, Any] = {**EDIT, "references": [original], "solver": solver}
    after = pipeline.generate(CHANGE, mask=mask(LEFT), **options)[0].rgba
    np.testing.assert_array_equal(after[RIGHT], before[RIGHT])
    (reds, none), (left, greens) = reds_and_greens(before[LEFT]), reds_and_greens(after[LEFT])
    assert min(reds, greens) > 800
    assert max(none, left) < 50


def test_what_the_mask_does_not_open_stays_against_the_prompt(pipeline: QwenImage, original: Image.Image) -> None:
    before, options = np.asarray(original), {**EDIT, "references": [original]}
    after = pipeline.generate(CHANGE, mask=mask(RIGHT), **options)[0].rgba
    np.testing.assert_array_equal(after[LEFT], before[LEFT])
    assert not np.array_equal(after[RIGHT], before[RIGHT])


def test_a_mask_that_opens_everything_changes_nothing(pipeline: QwenImage, original: Image.Image) -> None:
    options: dict[str, Any] = {**EDIT, "references": [original]}
    plain = pipeline.generate(CHANGE, **options)[0]
    opened = pipeline.generate(CHANGE, mask=mask(LEFT, RIGHT), **options)[0]
    np.testing.assert_array_equal(plain.latents, opened.latents)
    np.testing.assert_array_equal(plain.rgba, opened.rgba)
