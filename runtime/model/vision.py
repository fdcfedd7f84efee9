"""The inputs of the vision tower: patches, taps of its position table, and rotary tables.

Patches are in the order in which they are merged: 2x2 blocks in raster order, and inside a block again in raster order.
The arithmetic follows transformers' `Qwen2VLImageProcessor` and `vision_utils`.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qwen_image_engine.runtime.model.rope import rotary_tables

PATCH = 16
"""Side of a patch [pixels]."""

MERGE = 2
"""Side of an image slot of the text encoder [patches]."""

FRAMES = 2
"""Frames of a patch. A still image is the same frame twice."""


def vision_patches(rgb: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float]) -> NDArray[np.float32]:
    """Normalise an image and cut it into patches.

    Args:
        rgb: image (height, width, 3) uint8, with sides that are multiples of 32.
        mean: mean of each channel, in [0, 1].
        std: standard deviation of each channel, in [0, 1].

    Returns:
        Patches (N, 1536) float32, N = height/16 * width/16. The order in a patch is channel, frame, row, column.
    """
    height, width, channels = rgb.shape
    # Rescaling is fused into mean and std, and so rounded, as in transformers.
    shift = np.asarray(mean, np.float32) * np.float32(255)
    scale = np.asarray(std, np.float32) * np.float32(255)
    values = (rgb.astype(np.float32) - shift) / scale
    blocks = values.reshape(height // PATCH // MERGE, MERGE, PATCH, width // PATCH // MERGE, MERGE, PATCH, channels)
    frame = blocks.transpose(0, 3, 1, 4, 6, 2, 5)[:, :, :, :, :, None]  # (h, w, merge, merge, c, 1, patch, patch)
    return np.repeat(frame, FRAMES, axis=5).reshape(-1, channels * FRAMES * PATCH * PATCH)


def interpolation(rows: int, columns: int, side: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return bilinear taps into the learned table of positions. The table's corners fall on the image's corners.

    Args:
        rows: rows of patches of the image.
        columns: columns of patches of the image.
        side: side of the table, which has side * side rows.

    Returns:
        indices, (N, 4) int64 rows of the table, and weights, (N, 4) float32.
    """
    row, column = _merge_order(rows, columns)
    row_taps, row_weights = _axis_taps(row, rows, side)
    column_taps, column_weights = _axis_taps(column, columns, side)
    indices = row_taps[:, :, None] * side + column_taps[:, None, :]  # (N, 2, 2)
    weights = row_weights[:, :, None] * column_weights[:, None, :]
    return indices.reshape(-1, 4), weights.reshape(-1, 4)


def vision_rotary_tables(
    rows: int, columns: int, head_dim: int, theta: float = 10000.0
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the vision tower's rotary tables, for the half-split pairs (i, i + head_dim/2) of a head.

    The first head_dim/4 pairs rotate with the row, the others with the column, at the same frequencies (transformers
    `Qwen3VLVisionRotaryEmbedding`).

    Args:
        rows: rows of patches of the image.
        columns: columns of patches of the image.
        head_dim: channels of a head.
        theta: base of the frequencies.

    Returns:
        cos, sin, each (N, head_dim/2) float32.
    """
    positions = np.stack(_merge_order(rows, columns), axis=1).astype(np.int32)
    return rotary_tables(positions, (head_dim // 2, head_dim // 2), theta)


def _merge_order(rows: int, columns: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return row and column of every patch in merge order, each (N,)."""
    raster = np.indices((rows, columns))  # (2, rows, columns)
    blocks = raster.reshape(2, rows // MERGE, MERGE, columns // MERGE, MERGE).transpose(0, 1, 3, 2, 4)
    row, column = blocks.reshape(2, -1)
    return row, column


def _axis_taps(index: NDArray[np.int64], size: int, side: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the two neighbours of `index` of `size` in a table of `side`, and their weights, each (N, 2)."""
    place = index.astype(np.float32) * np.float32(side - 1) / np.float32(max(size - 1, 1))
    below = np.floor(place)
    neighbours = np.arange(2)
    distance = np.abs(place[:, None] - below[:, None] - neighbours.astype(np.float32))
    taps = np.clip(below.astype(np.int64)[:, None] + neighbours, 0, side - 1)
    return taps, np.maximum(np.float32(1) - distance, np.float32(0))
