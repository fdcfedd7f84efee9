"""Drawing of scenes, with antialiased edges from signed distances. Only Pillow's own font is loaded from disk."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from qwen_image_engine.reference.shapes.scenes.scene import COLOURS, GROUNDS, PLACES, RGB, TRANSPARENT, Scene

# Radius of a shape and its spread, the spread of its centre: fractions of the shorter side.
RADIUS, RADIUS_SPREAD, CENTRE_SPREAD = 0.137, 0.008, 0.012
WORD_HEIGHT = 0.13

Window = tuple[slice, slice]
"""Rows and columns of a picture."""


@dataclass(frozen=True)
class Spread:
    """The deviation of an item from the mean size and from the middle of its cell, each number in [-1, 1]."""

    radius: float
    x: float
    y: float

    @classmethod
    def random(cls, rng: np.random.Generator) -> Self:
        """Return a random spread, all equally likely."""
        return cls(*(float(rng.uniform(-1, 1)) for _ in range(3)))


def draw(scene: Scene, width: int, height: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw a scene with a random spread of every item; see `draw_spread`."""
    return draw_spread(scene, [Spread.random(rng) for _ in scene.items], width, height)


def draw_spread(scene: Scene, spreads: Sequence[Spread], width: int, height: int) -> NDArray[np.uint8]:
    """Draw a picture of the scene.

    The colour of a transparent ground is white, so that the picture reads well if alpha is dropped.

    Args:
        scene: Scene to draw.
        spreads: Deviation of each item in size and place.
        width: Width in pixels.
        height: Height in pixels.

    Returns:
        (height, width, 4) uint8, straight alpha.

    """
    clear = scene.ground == TRANSPARENT
    rgb = np.empty((height, width, 3), np.float32)
    rgb[:] = (255, 255, 255) if clear else GROUNDS[scene.ground]
    alpha = np.full((height, width), 0.0 if clear else 1.0, np.float32)
    side = min(width, height)
    layers: list[tuple[NDArray[np.float32], Window, RGB]] = []
    for item, spread in zip(scene.items, spreads, strict=True):
        radius = side * (RADIUS + RADIUS_SPREAD * spread.radius)
        x, y = place_centre(item.place, width, height)
        x += side * CENTRE_SPREAD * spread.x
        y += side * CENTRE_SPREAD * spread.y
        window = around(x, y, radius, width, height)
        layers.append((coverage(item.shape, x, y, radius, window), window, COLOURS[item.colour]))
    if scene.word is not None and scene.word_place is not None:
        cover = word_coverage(scene.word, scene.word_place, width, height)
        layers.append((cover, whole(width, height), word_colour(scene.ground)))
    for cover, window, colour in layers:
        # Straight alpha: on a clear ground the edge's colour is the shape's own, its alpha the coverage.
        weight = (cover > 0).astype(np.float32) if clear else cover
        rgb[window] += weight[..., None] * (np.asarray(colour, np.float32) - rgb[window])
        alpha[window] = np.maximum(alpha[window], cover)
    return np.concatenate([rgb, 255 * alpha[..., None]], axis=-1).round().astype(np.uint8)


def word_colour(ground: str) -> RGB:
    """Return the colour of a word: dark on a light or transparent ground, light on a dark ground."""
    dark = ground == TRANSPARENT or sum(GROUNDS[ground]) > 380
    return (20, 20, 20) if dark else (250, 250, 250)


def cell(place: str, width: int, height: int) -> Window:
    """Return the rows and columns of pixels of a cell of the grid."""
    row, column = PLACES[place]
    rows, columns = ((round(k * n / 3), round((k + 1) * n / 3)) for k, n in ((row, height), (column, width)))
    return slice(*rows), slice(*columns)


def place_centre(place: str, width: int, height: int) -> tuple[float, float]:
    """Return the centre of a cell of the grid, x and y in pixels."""
    row, column = PLACES[place]
    return (column + 0.5) * width / 3, (row + 0.5) * height / 3


def whole(width: int, height: int) -> Window:
    """Return the window of all pixels of a picture."""
    return slice(0, height), slice(0, width)


def around(x: float, y: float, radius: float, width: int, height: int) -> Window:
    """Return the window of the pixels that a shape of a radius may cover, whose tips reach 1.2 times as far."""
    reach = 1.2 * radius + 2
    columns = slice(max(0, int(x - reach)), max(0, min(width, int(x + reach) + 1)))
    rows = slice(max(0, int(y - reach)), max(0, min(height, int(y + reach) + 1)))
    return rows, columns


def coverage(shape: str, x: float, y: float, radius: float, window: Window) -> NDArray[np.float32]:
    """Return the part of each pixel that the shape covers, in [0, 1], (rows, columns) of the window."""
    rows, columns = window
    dx = np.arange(columns.start, columns.stop, dtype=np.float32)[None, :] + 0.5 - np.float32(x)
    dy = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] + 0.5 - np.float32(y)
    if shape == "circle":
        distance = np.hypot(dx, dy) - radius
    elif shape == "square":
        distance = np.maximum(abs(dx), abs(dy)) - 0.9 * radius
    elif shape == "triangle":  # equilateral, pointing up
        distance = np.maximum(dy - 0.6 * radius, abs(dx) * 0.866 - (dy + 0.1 * radius) * 0.5 - 0.55 * radius)
    else:  # cross
        arm, half = radius, 0.34 * radius
        upright = np.maximum(abs(dx) - half, abs(dy) - arm)
        level = np.maximum(abs(dy) - half, abs(dx) - arm)
        distance = np.minimum(upright, level)
    return np.clip(0.5 - distance, 0, 1).astype(np.float32)


def word_coverage(word: str, place: str, width: int, height: int) -> NDArray[np.float32]:
    """Return the part of each pixel that a word in the middle of a cell covers, (height, width) in [0, 1]."""
    x, y = place_centre(place, width, height)
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).text((x, y), word, 255, _font(round(WORD_HEIGHT * min(width, height))), anchor="mm")
    return np.asarray(mask, np.float32) / np.float32(255)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
