"""The size rule of reference images: the size that each one is fitted to."""

import math
from numbers import Integral

from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.runtime.images.read import MAX_ASPECT_RATIO
from qwen_image_engine.runtime.model.size import SIDE_MULTIPLE

MAX_RESOLUTION = 4096
"""Largest reference resolution [pixels]: 65,536 latents, and as many patches for the vision tower."""


def reference_size(
    width: int, height: int, resolution: int, *, name: str, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Return the fitted size of a reference image: its aspect ratio, an area of about `resolution` squared.

    Both sides are multiples of 32. The processor in front of the vision tower resizes an image outside its own bounds.
    The image slots would then no longer match the latents, so such a size is refused.

    Args:
        width: width of the image [pixels].
        height: height of the image [pixels].
        resolution: side of a square of the fitted area [pixels].
        name: name of the image in messages.
        min_pixels: smallest area that the processor does not resize (`size.shortest_edge` of its settings).
        max_pixels: largest area that the processor does not resize (`size.longest_edge` of its settings).

    Returns:
        (width, height) in pixels.

    Raises:
        UsageError: the resolution is not a whole number from 32 to 4096, or the fitted image is too small, too large or
            too long; the text names a resolution that works, if there is one.
    """
    check_resolution(resolution)
    size = _fitted(width, height, resolution)
    fault = _fault(size, min_pixels, max_pixels)
    if fault is None:
        return size
    valid = [
        candidate
        for candidate in range(SIDE_MULTIPLE, MAX_RESOLUTION + 1, SIDE_MULTIPLE)
        if _fault(_fitted(width, height, candidate), min_pixels, max_pixels) is None
    ]
    found = f"{name} is {size[0]}x{size[1]} at the reference resolution {resolution}: {fault}"
    if not valid:
        raise UsageError(f"{found}; crop it to a squarer shape")
    nearest = min(valid, key=lambda candidate: abs(candidate - resolution))
    raise UsageError(
        f"{found}; use --reference-resolution {nearest}", for_client=f"{found}; use 'reference_resolution' {nearest}"
    )


def check_resolution(resolution: int) -> None:
    """Raise if a reference resolution is invalid.

    Raises:
        UsageError: the resolution is not a whole number from 32 to 4096.
    """
    if not isinstance(resolution, Integral) or not SIDE_MULTIPLE <= resolution <= MAX_RESOLUTION:
        raise UsageError(
            f"the reference resolution is {resolution!r}, expected a whole number of pixels from {SIDE_MULTIPLE} to "
            f"{MAX_RESOLUTION}"
        )


def _fitted(width: int, height: int, resolution: int) -> tuple[int, int]:
    """Return the size by diffusers' `calculate_dimensions`, rounded half to even."""
    ratio = width / height
    wide = math.sqrt(resolution * resolution * ratio)
    return round(wide / SIDE_MULTIPLE) * SIDE_MULTIPLE, round(wide / ratio / SIDE_MULTIPLE) * SIDE_MULTIPLE


def _fault(size: tuple[int, int], min_pixels: int, max_pixels: int) -> str | None:
    short, long = sorted(size)
    if short < SIDE_MULTIPLE:
        return f"a side is under {SIDE_MULTIPLE} pixels, one of the text encoder's image slots"
    if long > MAX_ASPECT_RATIO * short:
        return f"longer than {MAX_ASPECT_RATIO}:1"
    if not min_pixels <= short * long <= max_pixels:
        return f"{short * long} pixels, and the text encoder reads {min_pixels} to {max_pixels}"
    return None
