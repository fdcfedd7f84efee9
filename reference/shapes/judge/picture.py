"""The judge of pictures: it decides from the pixels alone whether a picture shows its scene.

It looks at every cell of the 3x3 grid separately. Ink is every pixel that differs from the stated ground. A cell with
a stated shape must hold ink of the stated colour whose outline fits the stated shape better than any other. Every other
cell must be ground. Words are not read: the cell of a stated word is left out.
"""

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen_image_engine.reference.shapes.scenes.draw import RADIUS, Window, around, cell, coverage, place_centre, whole
from qwen_image_engine.reference.shapes.scenes.scene import (
    COLOURS,
    GROUNDS,
    PLACES,
    RGB,
    SHAPES,
    TRANSPARENT,
    Item,
    Scene,
)

# Distance in RGB from which a pixel is not the ground any more; the closest ground and colour, pink and white, are 106
# apart.
INK_DISTANCE = 55.0
# Share of a cell without a stated shape that may differ from the ground: soft edges of neighbours that reach over.
STRAY_INK = 0.04
# Ink area against the drawn shape's, and its overlap (intersection over union) with the best fitting outline.
AREA_RANGE = (0.6, 1.6)
MINIMUM_OVERLAP = 0.78
# Share of the inner ink whose nearest palette colour is the stated one.
COLOUR_SHARE = 0.7


@dataclass(frozen=True)
class Verdict:
    """The verdict on a picture; `faults` is empty if the picture fulfils its scene."""

    faults: tuple[str, ...]

    @property
    def fulfilled(self) -> bool:
        """Whether the picture has no faults."""
        return not self.faults


def judge(picture: NDArray[np.uint8], scene: Scene) -> Verdict:
    """Compare a picture with its scene.

    Args:
        picture: (H, W, 4) uint8, straight alpha.
        scene: Scene that the picture should show.

    Returns:
        The verdict. Each fault names a place and describes the error there.

    """
    height, width = picture.shape[:2]
    ink = _ink(picture, scene.ground)
    stated = {item.place: item for item in scene.items}
    faults = []
    for place in PLACES:
        rows, columns = cell(place, width, height)
        if place in stated:
            fault = _item_fault(picture, ink, (rows, columns), stated[place])
        elif place == scene.word_place:
            fault = None
        else:
            share = float(ink[rows, columns].mean())
            fault = f"{share:.0%} of the cell is not ground" if share > STRAY_INK else None
        if fault is not None:
            faults.append(f"{place}: {fault}")
    return Verdict(tuple(faults))


def _ink(picture: NDArray[np.uint8], ground: str) -> NDArray[np.bool_]:
    opaque = picture[..., 3] >= 128
    if ground == TRANSPARENT:
        return opaque
    ink: NDArray[np.bool_] = ~opaque | (_squared_distance(picture, GROUNDS[ground]) > INK_DISTANCE**2)
    return ink


def _squared_distance(pixels: NDArray[np.uint8], colour: RGB) -> NDArray[np.int32]:
    """Return the squared distance in RGB of pixels (..., 3 or 4) from a colour, (...): the sums of whole numbers."""
    red, green, blue = (pixels[..., index].astype(np.int32) - value for index, value in enumerate(colour))
    found: NDArray[np.int32] = red * red + green * green + blue * blue
    return found


def _item_fault(picture: NDArray[np.uint8], all_ink: NDArray[np.bool_], window: Window, item: Item) -> str | None:
    height, width = all_ink.shape
    radius = RADIUS * min(width, height)
    expected = _drawn_area(item.shape, item.place, width, height)
    ink = all_ink[window]
    area = float(ink.sum())
    if not AREA_RANGE[0] * expected <= area <= AREA_RANGE[1] * expected:
        return f"{area / expected:.2f} of the area of a {item.shape}"
    shape, overlap = _best_shape(ink, window, radius, width, height)
    if shape != item.shape or overlap < MINIMUM_OVERLAP:
        return f"looks like a {shape} (overlap {overlap:.2f}), not a {item.shape}"
    inner = _eroded(ink) & (picture[window][..., 3] >= 128)
    if not inner.any():
        return "nothing opaque"
    names, pixels = list(COLOURS), picture[window][inner]
    nearest = np.stack([_squared_distance(pixels, COLOURS[name]) for name in names], axis=-1).argmin(1)
    share = float((nearest == names.index(item.colour)).mean())
    if share < COLOUR_SHARE:
        return f"{names[int(np.bincount(nearest).argmax())]}, not {item.colour}"
    return None


@functools.lru_cache(maxsize=256)
def _drawn_area(shape: str, place: str, width: int, height: int) -> float:
    """Return the pixels that a shape of the mean size covers in the middle of a cell."""
    x, y = place_centre(place, width, height)
    return float(coverage(shape, x, y, RADIUS * min(width, height), whole(width, height)).sum())


@functools.lru_cache(maxsize=256)
def _template(shape: str, radius: float, width: int, height: int) -> tuple[int, float, float]:
    """Return the pixels of a shape in the middle of a picture, and x and y from its reference point to its centroid."""
    centred = coverage(shape, width / 2, height / 2, radius, whole(width, height)) >= 0.5
    rows, columns = np.nonzero(centred)
    return len(rows), float(columns.mean() + 0.5 - width / 2), float(rows.mean() + 0.5 - height / 2)


def _best_shape(ink: NDArray[np.bool_], window: Window, radius: float, width: int, height: int) -> tuple[str, float]:
    """Return the shape whose outline, moved and scaled to the ink, overlaps the ink most, and this overlap.

    `ink` is that of the window, (rows, columns); there is none elsewhere.
    """
    rows, columns = (indices + side.start for indices, side in zip(np.nonzero(ink), window, strict=True))
    everywhere, best = np.zeros((height, width), np.bool_), ("nothing", 0.0)
    everywhere[window] = ink
    for shape in SHAPES:
        area, right, down = _template(shape, radius, width, height)
        scale = float(np.sqrt(len(rows) / area))
        # The outline's reference point lies where its centroid meets the ink's.
        x = columns.mean() + 0.5 - scale * right
        y = rows.mean() + 0.5 - scale * down
        reached = around(x, y, radius * scale, width, height)
        outline = coverage(shape, x, y, radius * scale, reached) >= 0.5
        shared = int((outline & everywhere[reached]).sum())
        overlap = float(shared / (int(outline.sum()) + len(rows) - shared))
        if overlap > best[1]:
            best = (shape, overlap)
    return best


def _eroded(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the mask without its outer two pixels."""
    for _ in range(2):
        padded = np.pad(mask, 1)
        mask = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask
