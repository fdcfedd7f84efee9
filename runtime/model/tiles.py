"""The tiling of the decoder's second part, so that its memory does not grow with the picture.

Activations of the last levels are the decoder's largest: 4.8 GB each at 2048x2048 and the released widths. A run holds
three of them at once, about 15 GB in all. The largest tile, 71 latents a side with the halo, takes 6.3 GB, weights
included. A tile reads the features of its own latents and of a halo around them. The halo is as wide as the receptive
field, so a tile has the same pixels as the whole picture. At the picture's edges there is no halo: there, convolutions
pad with the same zeros.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

from qwen_image_engine.runtime.model.size import PIXELS_PER_LATENT

FEATURES_PER_LATENT = 2
"""Rows of features for each row of latents."""

TILE_LATENTS = 64
"""Maximum latents along a side of a tile without halo: 1024 pixels. A picture of up to that size is one tile."""


@dataclass(frozen=True)
class Span:
    """The range of latents that a tile draws along one side, and the range that it reads. Stops are exclusive."""

    start: int
    stop: int
    read_start: int
    read_stop: int


@dataclass(frozen=True, eq=False)
class Tile:
    """A part of the picture: rows and columns of the picture, and pixels (1, 4, height, width) in [-1, 1]."""

    rows: slice
    columns: slice
    image: NDArray[np.float32]


def spans(size: int, halo: int, most: int = TILE_LATENTS) -> Iterator[Span]:
    """Cut a side of `size` latents into the fewest spans of at most `most` latents, as equal as possible."""
    count = -(-size // most)
    for start, stop in pairwise(size * index // count for index in range(count + 1)):
        yield Span(start, stop, max(start - halo, 0), min(stop + halo, size))


def draw_tiles(
    draw: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    features: NDArray[np.float32],
    halo: int,
    most: int = TILE_LATENTS,
) -> Iterator[Tile]:
    """Draw a picture tile by tile.

    Args:
        draw: function from features (1, channels, 2 * rows, 2 * columns) to an image (1, 4, 16 * rows, 16 * columns) in
            [-1, 1].
        features: features of the whole picture.
        halo: latents on each side of a tile that its pixels depend on.
        most: maximum number of latents along a side of a tile without halo.
    """
    rows, columns = (size // FEATURES_PER_LATENT for size in features.shape[2:])
    for row, column in product(spans(rows, halo, most), spans(columns, halo, most)):
        image = draw(np.ascontiguousarray(features[:, :, _read(row), _read(column)]))
        yield Tile(
            _drawn(row, 0),
            _drawn(column, 0),
            image[:, :, _drawn(row, row.read_start), _drawn(column, column.read_start)],
        )


def _read(span: Span) -> slice:
    """Return the rows or columns of features that a tile reads."""
    return slice(span.read_start * FEATURES_PER_LATENT, span.read_stop * FEATURES_PER_LATENT)


def _drawn(span: Span, origin: int) -> slice:
    """Return the rows or columns of pixels that a tile draws, counted from the latent `origin`."""
    return slice((span.start - origin) * PIXELS_PER_LATENT, (span.stop - origin) * PIXELS_PER_LATENT)
