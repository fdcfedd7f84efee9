"""The token sequences of transformer and text encoder, as positions on three axes (frame or time, row, column).

Text, reference images and the target share them. This module is the counterpart of the index part of diffusers'
`QwenImage21Rope`, and of transformers' `Qwen3VLModel.get_rope_index`. The text encoder has one image slot for 2x2
latents.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TextRun:
    """A run of `length` consecutive text tokens."""

    length: int


@dataclass(frozen=True)
class ImageBlock:
    """An image of `height` x `width` latents, in raster order.

    Attention inside a block is bidirectional, so two blocks are never merged.
    """

    height: int
    width: int


Segment = TextRun | ImageBlock


@dataclass(frozen=True, eq=False)
class TokenSequence:
    """Positions of one sequence: the prefix (text and reference images), then the target image.

    Attributes:
        prefix: positions of the prefix, (T, 3) int32.
        target: positions of the target image, (h*w, 3) int32.
    """

    prefix: NDArray[np.int32]
    target: NDArray[np.int32]

    @classmethod
    def of(cls, prefix: Sequence[Segment], target: ImageBlock) -> Self:
        """Lay out segments in order; position 0 is the first token after the encoder's dropped system turn.

        A text token advances the position by 1, an image by max(height, width).
        """
        positions, start = _laid_out(prefix, _latents)
        return cls(positions, image_positions(target.height, target.width, start))

    @classmethod
    def text_to_image(cls, text_length: int, height: int, width: int) -> Self:
        """Lay out `text_length` text tokens, then a target of `height` x `width` latents."""
        return cls.of([TextRun(text_length)], ImageBlock(height, width))


def prefix_positions(segments: Sequence[Segment]) -> NDArray[np.int32]:
    """Return the positions of a prefix, (T, 3) int32. They do not depend on the target that follows."""
    return _laid_out(segments, _latents)[0]


def text_mask(segments: Sequence[Segment]) -> NDArray[np.bool_]:
    """Return the mask of a prefix's text tokens, (T,) bool."""
    parts = [
        np.ones(segment.length, bool)
        if isinstance(segment, TextRun)
        else np.zeros(segment.height * segment.width, bool)
        for segment in segments
    ]
    return np.concatenate([np.empty(0, bool), *parts])


def _laid_out(
    segments: Sequence[Segment], image: Callable[[ImageBlock, int], tuple[NDArray[np.int32], int]]
) -> tuple[NDArray[np.int32], int]:
    """Return the positions of segments in order, and the next position after them.

    `image` returns the positions of a block and the number by which it advances.
    """
    start, blocks = 0, [np.empty((0, 3), np.int32)]
    for segment in segments:
        if isinstance(segment, TextRun):
            positions, advance = text_positions(segment.length, start), segment.length
        else:
            positions, advance = image(segment, start)
        blocks.append(positions)
        start += advance
    return np.concatenate(blocks), start


def _latents(block: ImageBlock, start: int) -> tuple[NDArray[np.int32], int]:
    return image_positions(block.height, block.width, start), max(block.height, block.width)


def _slots(block: ImageBlock, start: int) -> tuple[NDArray[np.int32], int]:
    rows, columns = block.height // 2, block.width // 2
    return np.indices((1, rows, columns), np.int32).reshape(3, -1).T + np.int32(start), max(rows, columns)


def text_positions(length: int, start: int = 0) -> NDArray[np.int32]:
    """Return the positions of a text run, (length, 3) int32: token i is at start + i on every axis."""
    return np.repeat(np.arange(start, start + length, dtype=np.int32)[:, None], 3, axis=1)


def image_positions(height: int, width: int, start: int) -> NDArray[np.int32]:
    """Return the positions of an image's latents, (height*width, 3) int32, in raster order.

    The frame axis is `start`. Rows run -(h - h//2) .. h//2 - 1 and columns -(w - w//2) .. w//2 - 1: both are centred on
    zero wherever the image stands in the sequence.
    """
    positions = np.empty((height, width, 3), np.int32)
    positions[..., 0] = start
    positions[..., 1] = np.arange(height)[:, None] - (height - height // 2)
    positions[..., 2] = np.arange(width)[None, :] - (width - width // 2)
    return positions.reshape(height * width, 3)


def encoder_positions(segments: Sequence[Segment]) -> NDArray[np.int32]:
    """Return the text encoder's positions (time, row, column) of text and image slots in order, (T, 3) int32.

    A text token advances the position by 1 on every axis. An image block of h x w latents, both even, is h/2 x w/2
    slots in raster order. Inside it, time is constant, and rows and columns count from the current position. After it,
    the position advances by max(h, w)/2.
    """
    return _laid_out(segments, _slots)[0]
