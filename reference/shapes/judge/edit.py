"""The judge of edits: it decides from pixels alone whether an edit was made, and how much else was left alone."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen_image_engine.reference.shapes.judge.picture import judge
from qwen_image_engine.reference.shapes.scenes.draw import cell, word_colour, word_coverage
from qwen_image_engine.reference.shapes.scenes.edits import Edit
from qwen_image_engine.reference.shapes.scenes.scene import GROUNDS, TRANSPARENT, Scene

CLOSE = 8
"""Largest difference, of 255, at which a pixel counts as left alone."""

# Ink of a word against the drawn word's. The autoencoder smears letters, and a smear has as much ink as what it was
# made of; the smallest shape has more than twice the ink of the longest word.
WORD_INK_RANGE = (0.3, 1.8)


@dataclass(frozen=True)
class EditVerdict:
    """The verdict on an edited picture.

    Attributes:
        faults: Faults of the edit; empty if it was made.
        kept: Share of the other pixels that were left alone.

    """

    faults: tuple[str, ...]
    kept: float

    @property
    def fulfilled(self) -> bool:
        """Whether the edit was made without faults."""
        return not self.faults


def judge_edit(picture: NDArray[np.uint8], edit: Edit, reference: NDArray[np.uint8]) -> EditVerdict:
    """Compare a picture with the scene that the edit asks for, and its other pixels with the reference image.

    A pixel is left alone if its alpha is within `CLOSE` of the reference image's, and each of its colours is too. At
    clear pixels of the reference image, where no colour shows, the colours do not count.

    Args:
        picture: (H, W, 4) uint8, straight alpha.
        edit: Requested edit.
        reference: (H, W, 4) uint8, first reference image of the edit.

    """
    height, width = picture.shape[:2]
    scene = edit.result.scene
    faults = list(judge(picture, scene).faults)
    if edit.kind == "word" and (fault := _word_fault(picture, scene)) is not None:
        faults.append(f"{scene.word_place}: {fault}")
    return EditVerdict(tuple(faults), kept_share(picture, reference, ~edit.changed(width, height)))


def kept_share(picture: NDArray[np.uint8], reference: NDArray[np.uint8], where: NDArray[np.bool_]) -> float:
    """Return the share of the pixels in the mask `where` (H, W) that are left alone."""
    close = abs(picture.astype(np.int16) - reference) <= CLOSE
    kept = close[..., 3] & (close[..., :3].all(-1) | (reference[..., 3] == 0))
    return float(kept[where].mean())


def _word_fault(picture: NDArray[np.uint8], scene: Scene) -> str | None:
    """Return the fault of the scene's word, None if its cell has about as much ink as the drawn word."""
    assert scene.word is not None
    assert scene.word_place is not None
    height, width = picture.shape[:2]
    here = cell(scene.word_place, width, height)
    clear = scene.ground == TRANSPARENT
    ground = np.array((255, 255, 255) if clear else GROUNDS[scene.ground], np.float32)
    towards = np.array(word_colour(scene.ground), np.float32) - ground
    pixels = picture[here].astype(np.float32)
    ink = (pixels[..., :3] - ground) @ towards / (towards @ towards)
    if clear:
        ink *= pixels[..., 3] / 255
    # Signed, so that noise around the ground adds up to nothing.
    share = float(ink.clip(-1, 1).sum() / word_coverage(scene.word, scene.word_place, width, height).sum())
    if not WORD_INK_RANGE[0] <= share <= WORD_INK_RANGE[1]:
        return f"{share:.2f} of the ink of the word {scene.word}"
    return None
