"""Latents as the transformer's tokens and as the VAE's grid. The patch size is 1: packing only flattens."""

import numpy as np
from numpy.typing import NDArray


def pack_latents(latents: NDArray[np.float32]) -> NDArray[np.float32]:
    """Flatten (batch, 1, channels, height, width), as noise is drawn, to tokens (batch, height*width, channels)."""
    batch, _, channels, height, width = latents.shape
    return np.ascontiguousarray(latents.reshape(batch, channels, height * width).transpose(0, 2, 1))


def unpack_latents(tokens: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Lay tokens (batch, height*width, channels) out as (batch, channels, height, width), in raster order."""
    batch, _, channels = tokens.shape
    return np.ascontiguousarray(tokens.transpose(0, 2, 1)).reshape(batch, channels, height, width)
