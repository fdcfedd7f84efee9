"""Pictures in a page, and maps of the differences between two pictures."""

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
"""Smallest difference, of 255, that may have the brightest colour of a map. Invisible differences thus stay dark."""


@dataclass(frozen=True)
class PictureDifference:
    """The difference between two pictures of one size, value by value.

    Attributes:
        values: (height, width) uint8: largest difference of a pixel's red, green and blue, 0 to 255. The pictures are
            composed on white and on black, so that a difference of opacity counts as much as the eye sees it.
        mean: mean difference over all pixels, red, green and blue, and both backgrounds.
    """

    values: NDArray[np.uint8]
    mean: float

    @property
    def largest(self) -> int:
        """Largest difference of all pixels, 0 to 255."""
        return int(self.values.max())


def picture_difference(found: bytes, expected: bytes) -> PictureDifference | None:
    """Compare two PNGs. Return None if their sizes differ."""
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
    """Return the difference that has the brightest colour: the largest difference, but at least `LEAST_END`."""
    return max([LEAST_END, *(item.largest for item in differences)])


def difference_map(difference: PictureDifference, end: int) -> bytes:
    """Return the map as a PNG: black where the pictures are equal, the brightest colour at `end` and above."""
    return _coloured(np.round(np.minimum(difference.values, end) * (255 / end)).astype(np.uint8))


def colour_bar(end: int) -> Html:
    """Return the legend of the colours of maps."""
    bar = tag("img", src=data_uri(_coloured(np.arange(256, dtype=np.uint8)[None])), alt="", class_="colour-bar")
    return tag("span", "0 ", bar, f" {end} of 255", class_="legend")


def picture(data: bytes, alt: str, *caption: Html | str, plain: bool = False) -> Html:
    """Return a figure of a PNG with a checkerboard behind it, or without the checkerboard if the PNG is `plain`."""
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
    shown = tag(
        "img", src=data_uri(data), alt=alt, width=str(width), height=str(height), class_=None if plain else "board"
    )
    return tag("figure", shown, tag("figcaption", caption), class_="picture")


def side_by_side(columns: Sequence[Sequence[Html]]) -> Html:
    """Return columns of a picture and its difference map. All items of up to two columns are beside each other.

    A row of more columns scrolls separately if it is wider than the page, and the first column stays in sight.
    """
    if len(columns) <= 2:
        return tag("div", [item for column in columns for item in column], class_="pictures")
    shown = [tag("div", column) for column in columns]
    # Focus lets a keyboard scroll it.
    return tag("div", shown, class_="pictures row", tabindex="0", role="region", aria_label="pictures side by side")


def data_uri(data: bytes) -> str:
    """Return a PNG as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"


def _coloured(values: NDArray[np.uint8]) -> bytes:
    from matplotlib import colormaps

    return png_bytes(np.asarray(colormaps[COLOUR_MAP](values, bytes=True), np.uint8))
