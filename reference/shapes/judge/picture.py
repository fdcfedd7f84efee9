"""The judge of pictures: it decides from the pixels alone whether a picture shows its scene.

It looks at every cell of the 3x3 grid separately. Ink is every pixel that differs from the stated ground. A cell with
a stated shape must hold ink of the stated colour whose outline fits the stated shape better than any other. Every other
cell must be ground. Words are not read: the cell of a stated word is left out.
"""

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen_image_engine.reference.shapes.scenes.draw import RADIUS, cell, coverage, place_centre
from qwen_image_engine.reference.shapes.scenes.scene import COLOURS, GROUNDS, PLACES, SHAPES, TRANSPARENT, Item, Scene

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
            cell_ink = np.zeros_like(ink)
            cell_ink[rows, columns] = ink[rows, columns]
            fault = _item_fault(picture, cell_ink, stated[place])
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
    distance = np.linalg.norm(picture[..., :3].astype(np.float32) - np.array(GROUNDS[ground], np.float32), axis=-1)
    ink: NDArray[np.bool_] = ~opaque | (distance > INK_DISTANCE)
    return ink


def _item_fault(picture: NDArray[np.uint8], ink: NDArray[np.bool_], item: Item) -> str | None:
    height, width = ink.shape
    radius = RADIUS * min(width, height)
    expected = _drawn_area(item.shape, item.place, width, height)
    area = float(ink.sum())
    if not AREA_RANGE[0] * expected <= area <= AREA_RANGE[1] * expected:
        return f"{area / expected:.2f} of the area of a {item.shape}"
    shape, overlap = _best_shape(ink, radius)
    if shape != item.shape or overlap < MINIMUM_OVERLAP:
        return f"looks like a {shape} (overlap {overlap:.2f}), not a {item.shape}"
    inner = _eroded(ink) & (picture[..., 3] >= 128)
    if not inner.any():
        return "nothing opaque"
    names = list(COLOURS)
    palette = np.array([COLOURS[name] for name in names], np.float32)
    pixels = picture[inner][:, :3].astype(np.float32)
    nearest = np.linalg.norm(pixels[:, None] - palette, axis=-1).argmin(1)
    share = float((nearest == names.index(item.colour)).mean())
    if share < COLOUR_SHARE:
        return f"{names[int(np.bincount(nearest).argmax())]}, not {item.colour}"
    return None


@functools.lru_cache(maxsize=256)
def _drawn_area(shape: str, place: str, width: int, height: int) -> float:
    """Return the pixels that a shape of the mean size covers in the middle of a cell."""
    x, y = place_centre(place, width, height)
    return float(coverage(shape, x, y, RADIUS * min(width, height), width, height).sum())


@functools.lru_cache(maxsize=256)
def _template(shape: str, radius: float, width: int, height: int) -> tuple[int, float, float]:
    """Return the pixels of a shape in the middle of a picture, and x and y from its reference point to its centroid."""
    centred = coverage(shape, width / 2, height / 2, radius, width, height) >= 0.5
    rows, columns = np.nonzero(centred)
    return len(rows), float(columns.mean() + 0.5 - width / 2), float(rows.mean() + 0.5 - height / 2)


def _best_shape(ink: NDArray[np.bool_], radius: float) -> tuple[str, float]:
    """Return the shape whose outline, moved and scaled to the ink, overlaps the ink most, and this overlap."""
    height, width = ink.shape
    rows, columns = np.nonzero(ink)
    best = ("nothing", 0.0)
    for shape in SHAPES:
        area, right, down = _template(shape, radius, width, height)
        scale = float(np.sqrt(len(rows) / area))
        # The outline's reference point lies where its centroid meets the ink's.
        x = columns.mean() + 0.5 - scale * right
        y = rows.mean() + 0.5 - scale * down
        outline = coverage(shape, x, y, radius * scale, width, height) >= 0.5
        overlap = float((outline & ink).sum() / (outline | ink).sum())
        if overlap > best[1]:
            best = (shape, overlap)
    return best


def _eroded(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the mask without its outer two pixels."""
    for _ in range(2):
        padded = np.pad(mask, 1)
        mask = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask
