"""A reference image's pixels: fitted once, then read by the VAE with alpha and by the text encoder over white."""

import hashlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qwen_image_engine.runtime.images.fit import reference_size


def fit_reference(
    image: Image.Image, resolution: int, *, name: str, min_pixels: int, max_pixels: int
) -> NDArray[np.uint8]:
    """Resize a reference image to `reference_size` with a Lanczos filter, like diffusers' `VaeImageProcessor`.

    Args:
        image: RGBA image of any size.
        resolution: side of a square of the fitted area [pixels].
        name: name of the image in messages.
        min_pixels: smallest area that the vision tower's processor does not resize.
        max_pixels: largest area that the vision tower's processor does not resize.

    Returns:
        Pixels (height, width, 4) uint8.

    Raises:
        UsageError: the resolution is invalid, or the fitted image is too small, too large or too long.
    """
    size = reference_size(*image.size, resolution, name=name, min_pixels=min_pixels, max_pixels=max_pixels)
    return np.array(image.resize(size, Image.Resampling.LANCZOS))


def vae_pixels(rgba: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the input of the VAE encoder (diffusers' `VaeImageProcessor.preprocess`).

    Args:
        rgba: pixels (height, width, 4) uint8.

    Returns:
        Pixels (1, 4, height, width) float32 in [-1, 1].
    """
    unit = rgba.astype(np.float32) / np.float32(255)
    return np.ascontiguousarray((np.float32(2) * unit - np.float32(1)).transpose(2, 0, 1)[None])


def encoder_pixels(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the pixels for the text encoder: composited over white, as in diffusers' `QwenImage21Pipeline`.

    Args:
        rgba: pixels (height, width, 4) uint8.

    Returns:
        Pixels (height, width, 3) uint8.
    """
    image = Image.fromarray(rgba)
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=image.getchannel("A"))
    return np.array(white)


def reference_hash(rgba: NDArray[np.uint8]) -> str:
    """Return the SHA-256 of size and pixels. It is the cache key of an image's latents and states.

    Args:
        rgba: pixels (height, width, 4) uint8, or those of a mask (height, width) uint8.
    """
    return hashlib.sha256(f"{rgba.shape}".encode() + rgba.tobytes()).hexdigest()
