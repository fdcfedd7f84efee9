"""Conversion of latents between the transformer's tokens and the VAE's grid. The patch size is 1: packing flattens."""

import numpy as np
from numpy.typing import NDArray


def pack_latents(latents: NDArray[np.float32]) -> NDArray[np.float32]:
    """Flatten (batch, 1, channels, height, width), as noise is drawn, to tokens (batch, height*width, channels)."""
    batch, _, channels, height, width = latents.shape
    return np.ascontiguousarray(latents.reshape(batch, channels, height * width).transpose(0, 2, 1))


def unpack_latents(tokens: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Reshape tokens (batch, height*width, channels), in raster order, to a grid (batch, channels, height, width)."""
    batch, _, channels = tokens.shape
    return np.ascontiguousarray(tokens.transpose(0, 2, 1)).reshape(batch, channels, height, width)
