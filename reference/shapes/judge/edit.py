"""Decides from the pixels alone whether a picture is what an edit asks for, and how much of the rest it left alone."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen_image_engine.reference.shapes.judge.picture import judge
from qwen_image_engine.reference.shapes.scenes.draw import cell, word_colour, word_coverage
from qwen_image_engine.reference.shapes.scenes.edits import Edit
from qwen_image_engine.reference.shapes.scenes.scene import GROUNDS, TRANSPARENT, Scene

CLOSE = 8
"""Of 255: what a pixel that was to be left alone may differ."""

# Ink of a word against the drawn word's. The autoencoder smears letters, and a smear has as much ink as what it was
# made of; the smallest shape has more than twice the ink of the longest word.
WORD_INK_RANGE = (0.3, 1.8)


@dataclass(frozen=True)
class EditVerdict:
    """What was found; `faults` is empty when the edit was made, `kept` is the share of the other pixels left alone."""

    faults: tuple[str, ...]
    kept: float

    @property
    def fulfilled(self) -> bool:
        """Whether nothing is wrong with what was asked for."""
        return not self.faults


def judge_edit(picture: NDArray[np.uint8], edit: Edit, reference: NDArray[np.uint8]) -> EditVerdict:
    """Compare a picture with the scene that the edit should result in, and with the reference where it should be alike.

    A pixel is left alone if its alpha is within `CLOSE` of the reference's, and so is each of its colours unless the
    reference is clear there, where no colour shows.

    Args:
        picture: (H, W, 4) uint8, straight alpha.
        edit: What was asked for.
        reference: (H, W, 4) uint8, the first of the edit's references.

    """
    height, width = picture.shape[:2]
    scene = edit.result.scene
    faults = list(judge(picture, scene).faults)
    if edit.kind == "word" and (fault := _word_fault(picture, scene)) is not None:
        faults.append(f"{scene.word_place}: {fault}")
    return EditVerdict(tuple(faults), kept_share(picture, reference, ~edit.changed(width, height)))


def kept_share(picture: NDArray[np.uint8], reference: NDArray[np.uint8], where: NDArray[np.bool_]) -> float:
    """Share of the pixels `where` (H, W) that are left alone."""
    close = abs(picture.astype(np.int16) - reference) <= CLOSE
    kept = close[..., 3] & (close[..., :3].all(-1) | (reference[..., 3] == 0))
    return float(kept[where].mean())


def _word_fault(picture: NDArray[np.uint8], scene: Scene) -> str | None:
    """Whether the cell of the scene's word is as much nearer to the word's colour as the word's ink would make it."""
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
