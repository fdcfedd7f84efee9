"""Rotary tables of the transformer (three axes) and of the text encoder (one position for all axes).

An angle reaches thousands of radians, where one last bit of a float32 frequency moves the cosine by 1e-4. So frequency
and angle are rounded to float32 where diffusers and transformers round them; only cosine and sine are taken in float64.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def rotary_tables(
    positions: NDArray[np.int32], axes_dims: Sequence[int], theta: float = 10000.0
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Tables for the transformer, which rotates interleaved pairs (2i, 2i+1) of a head (diffusers `QwenImage21Rope`).

    Args:
        positions: (n, 3) int32, from `layout`.
        axes_dims: channels of a head given to each axis; their sum is head_dim.
        theta: base of the frequencies.

    Returns:
        cos, sin, each (n, head_dim/2) float32.
    """
    angles = [
        positions[:, axis, None].astype(np.float32) * inverse_frequencies(dim, theta)
        for axis, dim in enumerate(axes_dims)
    ]
    return _cos_sin(np.concatenate(angles, axis=1))  # (n, head_dim/2)


def text_rotary_tables(length: int, head_dim: int, theta: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Tables for the text encoder, which rotates the half-split pairs (i, i + head_dim/2) of a head.

    For text the three mRoPE axes are equal, so their interleaving changes nothing (transformers
    `Qwen3VLTextRotaryEmbedding`).

    Returns:
        cos, sin, each (length, head_dim/2) float32, for positions 0 .. length-1.
    """
    return _cos_sin(np.arange(length, dtype=np.float32)[:, None] * inverse_frequencies(head_dim, theta))


def inverse_frequencies(dim: int, theta: float) -> NDArray[np.float32]:
    """Give theta^(-2i/dim) for i in 0 .. dim/2-1, (dim/2,) float32."""
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    powers = np.power(np.float64(theta), exponents.astype(np.float64))
    return np.float32(1) / powers.astype(np.float32)


def _cos_sin(angles: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    wide = angles.astype(np.float64)
    return np.cos(wide).astype(np.float32), np.sin(wide).astype(np.float32)
