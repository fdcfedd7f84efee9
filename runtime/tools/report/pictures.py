"""Pictures in a page, and maps of where two of them differ."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qwen_image_engine.runtime.images.png import png_bytes
from qwen_image_engine.runtime.tools.report.html import Html, tag

COLOUR_MAP = "inferno"
LEAST_END = 8
"""Of 255, where maps' colours end at least: what nobody sees is not painted as bright as what is seen."""


@dataclass(frozen=True)
class PictureDifference:
    """Two pictures of one size, value by value.

    Attributes:
        values: (height, width) uint8, the largest difference of a pixel's red, green and blue in 0 to 255, the
            pictures being laid on white and on black, so that a difference of opacity shows as it does to the eye.
        mean: of red, green and blue and both grounds.
    """

    values: NDArray[np.uint8]
    mean: float

    @property
    def largest(self) -> int:
        """Of all pixels."""
        return int(self.values.max())


def picture_difference(found: bytes, expected: bytes) -> PictureDifference | None:
    """Compare two PNGs; None where their sizes differ."""
    pictures = []
    for data in (found, expected):
        with Image.open(io.BytesIO(data)) as image:
            rgba = np.asarray(image.convert("RGBA"), np.float64)
        colour, opacity = rgba[..., :3], rgba[..., 3:] / 255
        pictures.append(np.stack([np.round(colour * opacity + ground * (1 - opacity)) for ground in (255, 0)]))
    first, second = pictures
    if first.shape != second.shape:
        return None
    delta = np.abs(first - second)  # (2, height, width, 3)
    return PictureDifference(delta.max(axis=(0, 3)).astype(np.uint8), float(delta.mean()))


def scale_end(differences: Sequence[PictureDifference]) -> int:
    """The difference that has the brightest colour: the largest of all of them, and not less than `LEAST_END`."""
    return max([LEAST_END, *(item.largest for item in differences)])


def difference_map(difference: PictureDifference, end: int) -> bytes:
    """A PNG of the map, black where the pictures are the same, the brightest colour at `end` and above."""
    return _coloured(np.round(np.minimum(difference.values, end) * (255 / end)).astype(np.uint8))


def colour_bar(end: int) -> Html:
    """What the colours of maps mean."""
    bar = tag("img", src=data_uri(_coloured(np.arange(256, dtype=np.uint8)[None])), alt="", class_="colour-bar")
    return tag("span", "0 ", bar, f" {end} of 255", class_="legend")


def picture(data: bytes, alt: str, *caption: Html | str, plain: bool = False) -> Html:
    """A PNG over a checkerboard, where it is transparent; a `plain` one is opaque."""
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
    shown = tag(
        "img", src=data_uri(data), alt=alt, width=str(width), height=str(height), class_=None if plain else "board"
    )
    return tag("figure", shown, tag("figcaption", caption), class_="picture")


def side_by_side(columns: Sequence[Sequence[Html]]) -> Html:
    """Columns of a picture and the map of its difference; of two columns, all beside each other.

    A row of more scrolls by itself where it is wider than the page, the first column staying in sight.
    """
    if len(columns) <= 2:
        return tag("div", [item for column in columns for item in column], class_="pictures")
    shown = [tag("div", column) for column in columns]
    # Focus lets a keyboard scroll it.
    return tag("div", shown, class_="pictures row", tabindex="0", role="region", aria_label="pictures side by side")


def data_uri(data: bytes) -> str:
    """A PNG within the page."""
    return f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"


def _coloured(values: NDArray[np.uint8]) -> bytes:
    from matplotlib import colormaps

    return png_bytes(np.asarray(colormaps[COLOUR_MAP](values, bytes=True), np.uint8))
