"""Entries of a weight file that are computed from the checkpoint's tensors: int8 weights, their scales, and the rest.

Rows are independent of one another in a rotation of the input channels and in a scale for each output channel, so
weights are quantised as they stream, a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from qwen_image_engine.calibration.hadamard import rotate
from qwen_image_engine.calibration.int8 import quantise_rows
from qwen_image_engine.export.equalised_pair import EqualisedPair
from qwen_image_engine.export.tensor_blocks import row_blocks
from qwen_image_engine.reference.tensor_file import TensorInfo


@dataclass(frozen=True)
class Equalised:
    """A weight (N, K) as its pairs scale it: rows as the first of one, columns as the second of another."""

    source: TensorInfo
    as_first: EqualisedPair | None = None
    as_second: EqualisedPair | None = None

    def row_blocks(self) -> Iterator[Tensor]:
        """Blocks of whole rows (n, K) in float32."""
        row = 0
        for block in row_blocks(self.source):
            if self.as_first is not None:
                block = block * self.as_first.row_scales[row : row + len(block), None]
            if self.as_second is not None:
                block = block / self.as_second.column_scales
            row += len(block)
            yield block


class _Weight:
    """An entry under the name and of the shape of the checkpoint's weight that it is made from."""

    def __init__(self, weight: Equalised) -> None:
        self.weight = weight

    @property
    def name(self) -> str:
        """As in the checkpoint."""
        return self.weight.source.name

    @property
    def shape(self) -> tuple[int, ...]:
        """As in the checkpoint."""
        return self.weight.source.shape


class EqualisedWeight(_Weight):
    """A weight that stays in float32 beside a quantised one that it shares channels with."""

    dtype = "F32"

    def blocks(self) -> Iterator[memoryview]:
        """The scaled rows."""
        yield from map(_bytes, self.weight.row_blocks())


class Int8Weight(_Weight):
    """A weight (N, K) equalised, rotated in blocks of `rotation` input channels and quantised, one scale a row.

    `row_scales` (N,) is filled as the blocks are read, `rows_read` says how far. It is allocated before them: a small
    piece a block, kept, would stand between the large ones that come and go, and a file of 134 MB took 190 MB that way.
    """

    dtype = "I8"

    def __init__(self, weight: Equalised, rotation: int) -> None:
        super().__init__(weight)
        self.rotation = rotation
        self.row_scales = torch.empty(0)
        self.rows_read = 0

    def blocks(self) -> Iterator[memoryview]:
        """The codes."""
        self.row_scales, self.rows_read = torch.empty(self.shape[0]), 0
        for rows in self.weight.row_blocks():
            codes, scales = quantise_rows(rotate(rows, self.rotation))
            self.row_scales[self.rows_read : self.rows_read + len(scales)] = scales
            self.rows_read += len(scales)
            yield _bytes(codes)


@dataclass(frozen=True)
class Int8Scales:
    """The scales of a weight that stands before this entry in the file."""

    weight: Int8Weight
    dtype: str = "F32"

    @property
    def name(self) -> str:
        """The weight's name with _scale."""
        return f"{self.weight.name}_scale"

    @property
    def shape(self) -> tuple[int, ...]:
        """One for each output channel."""
        return self.weight.shape[:1]

    def blocks(self) -> Iterator[memoryview]:
        """All of them."""
        if self.weight.rows_read != self.shape[0]:
            raise ValueError(
                f"{self.name}: {self.weight.rows_read} rows were quantised before it, expected {self.shape}"
            )
        yield _bytes(self.weight.row_scales)


@dataclass(frozen=True)
class PairScales:
    """The scales of the values of attention, which the graphs need where values enter and leave: (heads, head_dim)."""

    name: str
    pair: EqualisedPair
    shape: tuple[int, ...]
    dtype: str = "F32"

    def blocks(self) -> Iterator[memoryview]:
        """All of them."""
        yield _bytes(self.pair.row_scales)


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().view(torch.uint8).numpy().data
