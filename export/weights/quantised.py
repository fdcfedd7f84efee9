"""Computed entries of a weight file: 8-bit weights and their scales, rescaled weights, input factors.

Rows are independent of one another in a rotation of the input channels, and in a scale for each output channel. So
weights are quantised as they stream, a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from qwen_image_engine.calibration.quantise import fp8, int8
from qwen_image_engine.calibration.quantise.channel_scales import ChannelScales
from qwen_image_engine.calibration.quantise.error_feedback import ErrorFeedback
from qwen_image_engine.calibration.quantise.hadamard import rotate
from qwen_image_engine.calibration.quantise.static_input import SCALE_DTYPE, StaticInput, stored_scale
from qwen_image_engine.engines.core.dtypes import STORED_FLOATS
from qwen_image_engine.reference.storage.finite import check_converted
from qwen_image_engine.reference.storage.tensor_blocks import row_blocks, tensor_bytes
from qwen_image_engine.reference.storage.tensor_file import TensorInfo


@dataclass(frozen=True)
class Rescaled:
    """A weight (N, K) with output channels scaled by `rows`, and input channels scaled by `columns`."""

    source: TensorInfo
    rows: ChannelScales | None = None
    columns: ChannelScales | None = None

    def row_blocks(self) -> Iterator[Tensor]:
        """Yield blocks of whole rows (n, K) in float32."""
        row = 0
        for block in row_blocks(self.source):
            if self.rows is not None:
                block = block * self.rows.row_scales[row : row + len(block), None]
            if self.columns is not None:
                block = block / self.columns.column_scales
            row += len(block)
            yield block


class _Weight:
    """An entry with the name and shape of the checkpoint's weight that it is made from."""

    def __init__(self, weight: Rescaled) -> None:
        self.weight = weight

    @property
    def name(self) -> str:
        """Name of the weight in the checkpoint."""
        return self.weight.source.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight in the checkpoint."""
        return self.weight.source.shape


class RescaledWeight(_Weight):
    """An unquantised weight that shares channels with a quantised weight."""

    def __init__(self, weight: Rescaled, dtype: str) -> None:
        super().__init__(weight)
        self.dtype = dtype

    def blocks(self) -> Iterator[memoryview]:
        """Yield the scaled rows."""
        first = 0
        for rows in self.weight.row_blocks():
            converted = rows.to(_torch(self.dtype))
            check_converted(self.weight.source, converted, first)
            first += rows.numel()
            yield tensor_bytes(converted)


class Int8Weight(_Weight):
    """A weight (N, K), rotated in blocks of `rotation` input channels and quantised with one scale a row.

    Scales are stored as `scale_dtype`. With static `channels` they are rounded to `SCALE_DTYPE`, whatever `scale_dtype`
    is.

    `row_scales` (N,) is filled as the blocks are read; `rows_read` is the number of filled rows. It is allocated before
    the blocks. Small arrays allocated between the blocks fragmented the heap: a file of 134 MB took 190 MB.
    """

    dtype = "I8"

    def __init__(self, weight: Rescaled, rotation: int, scale_dtype: str, channels: StaticInput | None = None) -> None:
        super().__init__(weight)
        self.rotation, self.scale_dtype, self.channels = rotation, scale_dtype, channels
        self.row_scales = torch.empty(0)
        self.rows_read = 0

    def blocks(self) -> Iterator[memoryview]:
        """Yield the codes."""
        stored, feedback = _torch(self.scale_dtype), _feedback(self.channels)
        dtype = stored if self.channels is None else SCALE_DTYPE
        self.row_scales, self.rows_read = torch.empty(self.shape[0], dtype=stored), 0
        for rows in self.weight.row_blocks():
            codes, scales = int8.quantise_rows(rotate(rows, self.rotation), dtype, feedback)
            self.row_scales[self.rows_read : self.rows_read + len(scales)] = scales
            self.rows_read += len(scales)
            yield tensor_bytes(codes)


@dataclass(frozen=True)
class Int8Scales:
    """The scales of an int8 weight, which stands before this entry in the file."""

    weight: Int8Weight

    @property
    def name(self) -> str:
        """Name of the weight, with _scale."""
        return f"{self.weight.name}_scale"

    @property
    def dtype(self) -> str:
        """Dtype of the scales that the weight was quantised with."""
        return self.weight.scale_dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (N,): one scale for each output channel."""
        return self.weight.shape[:1]

    def blocks(self) -> Iterator[memoryview]:
        """Yield all scales."""
        if self.weight.rows_read != self.shape[0]:
            raise ValueError(
                f"{self.name}: {self.weight.rows_read} rows were quantised before it, expected {self.shape}"
            )
        yield tensor_bytes(self.weight.row_scales)


class SharedScale:
    """The FP8 scale of weights whose linears read the same input, which a first pass over the weights finds."""

    def __init__(self, weights: Sequence[Rescaled], dtype: str) -> None:
        self.weights, self.dtype = tuple(weights), dtype

    @cached_property
    def value(self) -> Tensor:
        """Scale () in its stored dtype; 1 for weights of zeros, or of numbers that no scale is small enough for."""
        largest = max(_largest(rows) for weight in self.weights for rows in weight.row_blocks())
        scale = stored_scale(largest / fp8.LARGEST) or 1.0
        return torch.tensor(scale, dtype=_torch(self.dtype))


def _largest(values: Tensor) -> float:
    """Return the largest magnitude, in one pass and without a copy."""
    least, largest = values.aminmax()
    return max(-float(least), float(largest))


class Fp8Weight(_Weight):
    """A weight (N, K) in FP8 E4M3 with one scale."""

    dtype = "F8_E4M3"

    def __init__(self, weight: Rescaled, scale: SharedScale, channels: StaticInput | None = None) -> None:
        super().__init__(weight)
        self.scale, self.channels = scale, channels

    def blocks(self) -> Iterator[memoryview]:
        """Yield the codes, computed with the scale as it is stored."""
        scale, feedback = float(self.scale.value), _feedback(self.channels)
        for rows in self.weight.row_blocks():
            yield tensor_bytes(fp8.quantise_rows(rows, scale, feedback))


@dataclass(frozen=True)
class Fp8Scale:
    """The scale of an FP8 weight."""

    weight: Fp8Weight
    shape: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Name of the weight, with _scale."""
        return f"{self.weight.name}_scale"

    @property
    def dtype(self) -> str:
        """Dtype of the scale that the weight was quantised with."""
        return self.weight.scale.dtype

    def blocks(self) -> Iterator[memoryview]:
        """Yield the scale."""
        yield tensor_bytes(self.weight.scale.value.reshape(1))


@dataclass(frozen=True)
class RowScales:
    """Scales (heads, d) of a linear's output channels, for graphs that undo them where the channels leave."""

    name: str
    scales: ChannelScales
    shape: tuple[int, ...]
    dtype: str

    def blocks(self) -> Iterator[memoryview]:
        """Yield all scales, which are powers of two in every dtype."""
        yield tensor_bytes(self.scales.row_scales.to(_torch(self.dtype)))


@dataclass(frozen=True)
class InputFactors:
    """Factors (K,) that multiply the channels of an input before the linears that read it."""

    name: str
    scales: ChannelScales
    shape: tuple[int, ...]
    dtype: str

    def blocks(self) -> Iterator[memoryview]:
        """Yield all factors, which are powers of two in every dtype."""
        yield tensor_bytes(self.scales.column_scales.to(_torch(self.dtype)))


def _feedback(channels: StaticInput | None) -> ErrorFeedback | None:
    """Return error feedback for rounding a weight, from what calibration saw of the weight's input; None without it."""
    return None if channels is None else channels.error_feedback()


def _torch(dtype: str) -> torch.dtype:
    found: torch.dtype = getattr(torch, STORED_FLOATS[dtype].name)
    return found
