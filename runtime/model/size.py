"""The size rule: which picture sizes the model can draw, and how many latents they have."""

from numbers import Integral

from qwen_image_engine.engines.core.errors import UsageError

SIDE_MULTIPLE = 32
"""Sides are whole multiples of this many pixels: 16 of the VAE times the 2x2 latents of one encoder image slot."""

PIXELS_PER_LATENT = 16

DEFAULT_RESOLUTION = 1024
"""Side in pixels of a picture, and of a square of a reference image's area, where none is asked for."""

MAX_REFERENCES = 10
"""Reference images that the released model was trained for."""


def latent_size(width: int, height: int) -> tuple[int, int]:
    """Check a picture size and give its latents.

    Args:
        width: pixels.
        height: pixels.

    Returns:
        (rows, columns) of latents: height / 16, width / 16.

    Raises:
        UsageError: a side is not a positive multiple of 32; the text names the nearest valid sides.
    """
    if not (isinstance(width, Integral) and isinstance(height, Integral)):
        raise UsageError(f"size {width!r} by {height!r}: expected whole numbers of pixels")
    faults = [f"{name} {side}" for name, side in (("width", width), ("height", height)) if not _is_valid(side)]
    if faults:
        widths = " or ".join(map(str, nearest_sides(width)))
        heights = " or ".join(map(str, nearest_sides(height)))
        raise UsageError(
            f"size {width}x{height}: {' and '.join(faults)} must be a positive multiple of {SIDE_MULTIPLE}; "
            f"nearest: width {widths}, height {heights}"
        )
    return height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT


def nearest_sides(side: int) -> tuple[int, ...]:
    """Give the valid sides around `side` in pixels: itself, or the ones below and above, never less than 32."""
    if _is_valid(side):
        return (side,)
    below = side // SIDE_MULTIPLE * SIDE_MULTIPLE
    return (below, below + SIDE_MULTIPLE) if below > 0 else (SIDE_MULTIPLE,)


def _is_valid(side: int) -> bool:
    return side > 0 and side % SIDE_MULTIPLE == 0


MAX_IMAGES = 4
"""Most images of one batch."""
