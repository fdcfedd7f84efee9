"""Reference images to draw after, soft patches of any colour and opacity, and masks of them."""

import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def patches(width: int, height: int, mode: str = "RGBA", seed: int = 0) -> Image.Image:
    """An image of `mode` RGB or RGBA; the same arguments give the same."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, len(mode))).astype(np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def mask_of(alpha: NDArray[np.uint8]) -> Image.Image:
    """A mask with this alpha (height, width), 0 where it opens."""
    image = Image.new("RGBA", alpha.shape[::-1], (9, 99, 199))
    image.putalpha(Image.fromarray(alpha))
    return image


def png_chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG that Pillow does not write."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
