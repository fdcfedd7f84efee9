"""The size rule: the picture sizes that the model can generate, and the number of latents of each."""

from numbers import Integral

from qwen_image_engine.engines.core.errors import UsageError

SIDE_MULTIPLE = 32
"""Divisor of every side in pixels: 16 pixels a latent times the 2x2 latents of one image slot of the text encoder."""

PIXELS_PER_LATENT = 16

DEFAULT_RESOLUTION = 1024
"""Default side in pixels of a picture, and of a square of a reference image's area."""

MAX_REFERENCES = 10
"""Maximum number of reference images of a request: the number that the released model was trained for."""


def latent_size(width: int, height: int) -> tuple[int, int]:
    """Check a picture size and return the size of its latents.

    Args:
        width: width of the picture [pixels].
        height: height of the picture [pixels].

    Returns:
        (rows, columns) of latents: height / 16, width / 16.

    Raises:
        UsageError: a side is not a whole number or not a positive multiple of 32; for the latter the text names the
            nearest valid sides.
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
    """Return the valid sides nearest to `side` in pixels: `side` itself, or the next below and above, at least 32."""
    if _is_valid(side):
        return (side,)
    below = side // SIDE_MULTIPLE * SIDE_MULTIPLE
    return (below, below + SIDE_MULTIPLE) if below > 0 else (SIDE_MULTIPLE,)


def other_side(side: int, given: int, wanted: int) -> int:
    """Return the valid side nearest to `side * wanted / given`: a picture of sides in the ratio `given` to `wanted`.

    A `side` that is no positive whole number gives the smallest valid side; `latent_size` refuses the former.
    """
    if not isinstance(side, Integral) or side <= 0:
        return SIDE_MULTIPLE
    multiples = (2 * side * wanted + given * SIDE_MULTIPLE) // (2 * given * SIDE_MULTIPLE)  # rounds half up
    return SIDE_MULTIPLE * max(1, multiples)


def _is_valid(side: int) -> bool:
    return side > 0 and side % SIDE_MULTIPLE == 0


MAX_IMAGES = 4
"""Maximum number of pictures in a batch."""
