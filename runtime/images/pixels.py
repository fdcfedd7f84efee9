"""A reference image's pixels: fitted once, then read by the VAE with its alpha and by the text encoder over white."""

import hashlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qwen_image_engine.runtime.images.fit import reference_size


def fit_reference(
    image: Image.Image, resolution: int, *, name: str, min_pixels: int, max_pixels: int
) -> NDArray[np.uint8]:
    """Resize to `reference_size` with a Lanczos filter, as diffusers' `VaeImageProcessor` does.

    Args:
        image: RGBA, of any size.
        resolution: see `reference_size`, as for the bounds and the name.
        name: names the image in messages.
        min_pixels: the processor's lower bound.
        max_pixels: the processor's upper bound.

    Returns:
        (height, width, 4) uint8.

    Raises:
        UsageError: see `reference_size`.
    """
    size = reference_size(*image.size, resolution, name=name, min_pixels=min_pixels, max_pixels=max_pixels)
    return np.array(image.resize(size, Image.Resampling.LANCZOS))


def vae_pixels(rgba: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Give what the VAE encoder reads (diffusers' `VaeImageProcessor.preprocess`).

    Args:
        rgba: (height, width, 4) uint8.

    Returns:
        (1, 4, height, width) float32 in [-1, 1].
    """
    unit = rgba.astype(np.float32) / np.float32(255)
    return np.ascontiguousarray((np.float32(2) * unit - np.float32(1)).transpose(2, 0, 1)[None])


def encoder_pixels(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Give what the text encoder reads: composited over white, as in diffusers' `QwenImage21Pipeline`.

    Args:
        rgba: (height, width, 4) uint8.

    Returns:
        (height, width, 3) uint8.
    """
    image = Image.fromarray(rgba)
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=image.getchannel("A"))
    return np.array(white)


def reference_hash(rgba: NDArray[np.uint8]) -> str:
    """Give the SHA-256 of size and pixels, by which an image's latents and states are used again."""
    return hashlib.sha256(f"{rgba.shape}".encode() + rgba.tobytes()).hexdigest()
