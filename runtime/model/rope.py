"""Rotary tables of the transformer (each axis has channels of its own) and of the text encoder (the axes interleave).

An angle reaches thousands of radians. There, the last bit of a float32 frequency moves the cosine by 1e-4. So frequency
and angle are rounded to float32 where diffusers and transformers round them; only cosine and sine are in float64.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def rotary_tables(
    positions: NDArray[np.int32], axes_dims: Sequence[int], theta: float = 10000.0
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the transformer's tables for interleaved pairs (2i, 2i+1) of a head (diffusers `QwenImage21Rope`).

    Args:
        positions: (n, axes) int32, from `model.sequence`.
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


def encoder_rotary_tables(
    positions: NDArray[np.int32], head_dim: int, theta: float, section: Sequence[int]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the text encoder's tables: interleaved mRoPE (transformers `Qwen3VLTextRotaryEmbedding`).

    Pair i rotates with the row for i = 1, 4, 7, … and with the column for i = 2, 5, 8, …. `section` has the number of
    pairs of each. All other pairs rotate with time.

    Args:
        positions: (T, 3) int32, from `sequence.encoder_positions`.
        head_dim: channels of a head.
        theta: base of the frequencies.
        section: pairs for time, row and column; their sum is head_dim/2.

    Returns:
        cos, sin, each (T, head_dim/2) float32, for the half-split pairs (i, i + head_dim/2).
    """
    axes = np.zeros(head_dim // 2, np.int64)
    for axis in (1, 2):
        axes[axis : 3 * section[axis] : 3] = axis
    return _cos_sin(positions[:, axes].astype(np.float32) * inverse_frequencies(head_dim, theta))


def inverse_frequencies(dim: int, theta: float) -> NDArray[np.float32]:
    """Return theta^(-2i/dim) for i in 0 .. dim/2-1, (dim/2,) float32."""
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    powers = np.power(np.float64(theta), exponents.astype(np.float64))
    return np.float32(1) / powers.astype(np.float32)


def _cos_sin(angles: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    wide = angles.astype(np.float64)
    return np.cos(wide).astype(np.float32), np.sin(wide).astype(np.float32)
