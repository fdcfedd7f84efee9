"""Statistics of an activation: absmax by channel and by step, mean products of channels, percentiles of magnitudes.

The sums of an activation grow run by run on the device of its network. They are restored bit for bit from a file, so an
interrupted calibration has the same result as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from qwen_image_engine.runtime.system.json_schema import SchemaError

PERCENTILES = (99.0, 99.9, 99.99, 99.999)

# The histogram's bins are cut from the bits of float32: 2^6 = 64 to an octave, so a bin is 0.8% to 1.6% wide, over the
# octaves from 2^-32 to 2^32. What lies beyond counts in the first and the last bin.
_BINS_BITS = 6
_LOWEST_EXPONENT, _OCTAVES = -32, 64
_BINS = _OCTAVES << _BINS_BITS
_MANTISSA_BITS, _EXPONENT_BIAS = 23, 127

_FORMATS = {
    "channel_absmax": (torch.float32, 1),
    "square_sum": (torch.float64, 1),
    "histogram": (torch.int64, 1),
    "absmax_by_step": (torch.float32, 1),
    "gram_sum": (torch.float32, 3),
    "rows": (torch.int64, 0),
}
"""Dtype and number of axes of each tensor of sums."""

RESOLUTION = 2.0**-_BINS_BITS
"""Relative error bound of percentiles from 2^-32 to 2^32. Magnitudes below 2^-32 count as 0."""


@dataclass(frozen=True, eq=False)
class InputStatistics:
    """The statistics of one activation of K channels over all observed values; float32 on the CPU.

    Attributes:
        channel_absmax: (K,): largest magnitude of each channel.
        channel_mean_square: (K,): mean square of each channel over all rows.
        percentiles: (4,): `PERCENTILES` of the magnitudes of all channels together, within `RESOLUTION`.
        absmax_by_step: (S,): largest magnitude at each step of the schedule. S is 1 if the component runs once a
            prompt.
        gram: (K / B, B, B): mean of x^T x within blocks of B channels; (0, 0, 0) if it is not stored.
    """

    channel_absmax: Tensor
    channel_mean_square: Tensor
    percentiles: Tensor
    absmax_by_step: Tensor
    gram: Tensor


class InputSums:
    """The sums from which `InputStatistics` are computed. `add` adds values to them."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from the result of the method `tensors`. The tensors are not copied."""
        self._channel_absmax = tensors["channel_absmax"]  # (K,) float32
        self._square_sum = tensors["square_sum"]  # (K,) float64
        self._histogram = tensors["histogram"]  # (bins,) int64
        self._absmax_by_step = tensors["absmax_by_step"]  # (S,) float32
        self._gram_sum = tensors["gram_sum"]  # (K / B, B, B) float32
        self._rows = tensors["rows"]  # () int64

    @classmethod
    def read(cls, place: str, tensors: Mapping[str, Tensor]) -> Self:
        """Continue from tensors of a file, which has no hash.

        Args:
            place: component and activation, for errors.
            tensors: sums by name.

        Raises:
            SchemaError: a tensor is missing, has another dtype or shape, or holds values that are no sums.
        """
        for name, (dtype, axes) in _FORMATS.items():
            found = tensors.get(name)
            if found is None:
                raise SchemaError(f"{place}: {name} is missing")
            if found.dtype != dtype or found.ndim != axes:
                raise SchemaError(
                    f"{place}: {name} is {found.dtype} {tuple(found.shape)}, expected {dtype}, {axes} axes"
                )
            if not bool(found.isfinite().all()) or (name != "gram_sum" and bool((found < 0).any())):
                raise SchemaError(f"{place}: {name} holds values that are not finite or below 0")
        channels, gram = len(tensors["channel_absmax"]), tensors["gram_sum"].shape
        blocks, block = gram[0], gram[1]
        if (
            tensors["square_sum"].shape != (channels,)
            or tensors["histogram"].shape != (_BINS,)
            or gram != (blocks, block, block)
            or (blocks and blocks * block != channels)
        ):
            raise SchemaError(f"{place}: its sums have shapes that do not fit each other")
        return cls(tensors)

    def fits(self, other: InputSums) -> bool:
        """Return whether the sums have the same shapes as others, so that they are of the same activation."""
        return {name: item.shape for name, item in self.tensors().items()} == {
            name: item.shape for name, item in other.tensors().items()
        }

    @classmethod
    def empty(cls, channels: int, steps: int, device: torch.device, block: int = 0) -> Self:
        """Return the sums before any value.

        Args:
            channels: number of channels K.
            steps: number of steps S.
            device: device of the sums.
            block: size B of the blocks of channels, which divides K; 0 for no products of channels.
        """
        blocks = channels // block if block else 0
        return cls(
            {
                "channel_absmax": torch.zeros(channels, device=device),
                "square_sum": torch.zeros(channels, dtype=torch.float64, device=device),
                "histogram": torch.zeros(_BINS, dtype=torch.int64, device=device),
                "absmax_by_step": torch.zeros(steps, device=device),
                "gram_sum": torch.zeros(blocks, block, block, device=device),
                "rows": torch.zeros((), dtype=torch.int64, device=device),
            }
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of all sums by name, without copies."""
        return {
            "channel_absmax": self._channel_absmax,
            "square_sum": self._square_sum,
            "histogram": self._histogram,
            "absmax_by_step": self._absmax_by_step,
            "gram_sum": self._gram_sum,
            "rows": self._rows,
        }

    def add(self, values: Tensor, step: int) -> None:
        """Add `values` (…, K) of any float dtype, observed at `step`.

        Raises:
            FloatingPointError: a value is not finite; the sums are then unchanged. The text gives the number of such
                values.
        """
        values = values.flatten(0, -2).float()  # (rows, K)
        magnitudes = values.abs()
        largest = magnitudes.amax(dim=0)
        if not bool(largest.isfinite().all()):  # a NaN is the largest of its channel
            wrong = magnitudes.numel() - int(magnitudes.isfinite().sum())
            raise FloatingPointError(f"{wrong} of {magnitudes.numel()} values")
        torch.maximum(self._channel_absmax, largest, out=self._channel_absmax)
        at_step = self._absmax_by_step[step]
        torch.maximum(at_step, largest.amax(), out=at_step)
        self._histogram += _histogram(magnitudes)
        # A run's rows are few enough for float32 (they are summed in a tree), those of a calibration are not.
        if len(self._gram_sum):
            blocks = values.reshape(len(values), len(self._gram_sum), -1).permute(1, 2, 0)  # (K / B, B, rows)
            self._gram_sum.baddbmm_(blocks, blocks.transpose(1, 2))
        self._square_sum += magnitudes.square_().sum(dim=0)
        self._rows += len(magnitudes)

    def statistics(self) -> InputStatistics:
        """Return the statistics of all added values."""
        return InputStatistics(
            channel_absmax=self._channel_absmax.cpu(),
            channel_mean_square=(self._square_sum / self._rows).float().cpu(),
            percentiles=_percentiles(self._histogram.cpu(), self._channel_absmax.amax().cpu()),
            absmax_by_step=self._absmax_by_step.cpu(),
            gram=(self._gram_sum / self._rows).cpu(),
        )


def _histogram(magnitudes: Tensor) -> Tensor:
    """Return the counts (bins,) of finite float32 magnitudes."""
    bits = magnitudes.view(torch.int32).flatten()
    first = (_LOWEST_EXPONENT + _EXPONENT_BIAS) << _BINS_BITS
    bins = (bits >> (_MANTISSA_BITS - _BINS_BITS)).sub_(first).clamp_(0, _BINS - 1)
    return torch.bincount(bins, minlength=_BINS)


def _edges() -> Tensor:
    """Return the edges of the bins, (bins + 1,) float64."""
    first = (_LOWEST_EXPONENT + _EXPONENT_BIAS) << _BINS_BITS
    bits = torch.arange(first, first + _BINS + 1, dtype=torch.int32) << (_MANTISSA_BITS - _BINS_BITS)
    return bits.view(torch.float32).double()


def _percentiles(histogram: Tensor, largest: Tensor) -> Tensor:
    """Return `PERCENTILES` (4,) float32 by linear interpolation inside the bins, limited by the `largest` magnitude."""
    cumulative = histogram.cumsum(0).double()
    ranks = torch.tensor(PERCENTILES, dtype=torch.float64) / 100 * cumulative[-1]
    bins = torch.searchsorted(cumulative, ranks)
    counts = histogram[bins].double()
    share = (ranks - (cumulative[bins] - counts)) / counts
    edges = _edges()
    values = (edges[bins] + share * (edges[bins + 1] - edges[bins])).float()
    return torch.minimum(values, largest).where(bins > 0, 0.0)
