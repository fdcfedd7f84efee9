"""Reference images to draw after: soft patches of any colour, and of any opacity where there is an alpha."""

import numpy as np
from PIL import Image


def patches(width: int, height: int, mode: str = "RGBA", seed: int = 0) -> Image.Image:
    """An image of `mode` RGB or RGBA; the same arguments give the same."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, len(mode))).astype(np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
