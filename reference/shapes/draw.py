"""Draws a scene with antialiased edges from signed distances; nothing is loaded from disk but Pillow's own font."""

import functools

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from qwen_image_engine.reference.shapes.scene import COLOURS, GROUNDS, PLACES, RGB, TRANSPARENT, Scene

# Radius of a shape and its spread, the spread of its centre: fractions of the shorter side.
RADIUS, RADIUS_SPREAD, CENTRE_SPREAD = 0.137, 0.008, 0.012
WORD_HEIGHT = 0.13


def draw(scene: Scene, width: int, height: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A picture of the scene.

    Under a transparent ground the colour is white, so that the same picture reads well where alpha is dropped.

    Args:
        scene: What to draw.
        width: In pixels.
        height: In pixels.
        rng: Source of the small spread in size and place.

    Returns:
        (height, width, 4) uint8, straight alpha.

    """
    clear = scene.ground == TRANSPARENT
    rgb = np.empty((height, width, 3), np.float32)
    rgb[:] = (255, 255, 255) if clear else GROUNDS[scene.ground]
    alpha = np.full((height, width), 0.0 if clear else 1.0, np.float32)
    side = min(width, height)
    layers: list[tuple[NDArray[np.float32], RGB]] = []
    for item in scene.items:
        radius = side * (RADIUS + RADIUS_SPREAD * rng.uniform(-1, 1))
        x, y = place_centre(item.place, width, height)
        x += side * CENTRE_SPREAD * rng.uniform(-1, 1)
        y += side * CENTRE_SPREAD * rng.uniform(-1, 1)
        layers.append((coverage(item.shape, x, y, radius, width, height), COLOURS[item.colour]))
    if scene.word is not None and scene.word_place is not None:
        dark = clear or sum(GROUNDS[scene.ground]) > 380
        layers.append((_word(scene.word, scene.word_place, width, height), (20, 20, 20) if dark else (250, 250, 250)))
    for cover, colour in layers:
        # Straight alpha: on a clear ground the edge's colour is the shape's own, its alpha the coverage.
        weight = (cover > 0).astype(np.float32) if clear else cover
        rgb += weight[..., None] * (np.asarray(colour, np.float32) - rgb)
        alpha = np.maximum(alpha, cover)
    return np.concatenate([rgb, 255 * alpha[..., None]], axis=-1).round().astype(np.uint8)


def place_centre(place: str, width: int, height: int) -> tuple[float, float]:
    """Centre of a cell of the grid, x and y in pixels."""
    row, column = PLACES[place]
    return (column + 0.5) * width / 3, (row + 0.5) * height / 3


def coverage(shape: str, x: float, y: float, radius: float, width: int, height: int) -> NDArray[np.float32]:
    """Part of each pixel that the shape covers, (height, width) in [0, 1]."""
    dx = np.arange(width, dtype=np.float32)[None, :] + 0.5 - np.float32(x)
    dy = np.arange(height, dtype=np.float32)[:, None] + 0.5 - np.float32(y)
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


def _word(word: str, place: str, width: int, height: int) -> NDArray[np.float32]:
    x, y = place_centre(place, width, height)
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).text((x, y), word, 255, _font(round(WORD_HEIGHT * min(width, height))), anchor="mm")
    return np.asarray(mask, np.float32) / np.float32(255)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
