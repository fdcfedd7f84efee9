"""What is kept of an activation: ranges by channel and by step, mean products of channels, percentiles of magnitudes.

Sums of one activation grow run by run on the device of its network. They are restored bit for bit from a file, so that
an interrupted calibration ends as an uninterrupted one does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

PERCENTILES = (99.0, 99.9, 99.99, 99.999)

# The histogram's bins are cut from the bits of float32: 2^6 = 64 to an octave, so a bin is 0.8% to 1.6% wide, over the
# octaves from 2^-32 to 2^32. What lies beyond counts in the first and the last bin.
_BINS_BITS = 6
_LOWEST_EXPONENT, _OCTAVES = -32, 64
_BINS = _OCTAVES << _BINS_BITS
_MANTISSA_BITS, _EXPONENT_BIAS = 23, 127

RESOLUTION = 2.0**-_BINS_BITS
"""Percentiles are right within this share of their value, from 2^-32 (smaller magnitudes are 0) to 2^32."""


@dataclass(frozen=True, eq=False)
class InputStatistics:
    """Of one activation of K channels over everything that was seen; float32 on the CPU.

    Attributes:
        channel_absmax: (K,), the largest magnitude.
        channel_mean_square: (K,), over all rows.
        percentiles: (4,), of the magnitudes of all channels together: `PERCENTILES`, within `RESOLUTION`.
        absmax_by_step: (S,), the largest magnitude at each step of the schedule; S is 1 where a component runs once a
            prompt.
        gram: (K / B, B, B), the mean of x^T x within blocks of B channels; (0, 0, 0) where it is not kept.
    """

    channel_absmax: Tensor
    channel_mean_square: Tensor
    percentiles: Tensor
    absmax_by_step: Tensor
    gram: Tensor


class InputSums:
    """The sums behind `InputStatistics`, growing by `add`."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` returned; they are not copied."""
        self._channel_absmax = tensors["channel_absmax"]  # (K,) float32
        self._square_sum = tensors["square_sum"]  # (K,) float64
        self._histogram = tensors["histogram"]  # (bins,) int64
        self._absmax_by_step = tensors["absmax_by_step"]  # (S,) float32
        self._gram_sum = tensors["gram_sum"]  # (K / B, B, B) float32
        self._rows = tensors["rows"]  # () int64

    @classmethod
    def empty(cls, channels: int, steps: int, device: torch.device, block: int = 0) -> Self:
        """Nothing seen yet.

        Args:
            channels: K.
            steps: S.
            device: where the sums are kept.
            block: B, which divides K; 0 for no products of channels.
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
        """All that has been summed, as it is kept."""
        return {
            "channel_absmax": self._channel_absmax,
            "square_sum": self._square_sum,
            "histogram": self._histogram,
            "absmax_by_step": self._absmax_by_step,
            "gram_sum": self._gram_sum,
            "rows": self._rows,
        }

    def add(self, values: Tensor, step: int) -> None:
        """Count `values` (…, K) of any float dtype, seen at `step`.

        Raises:
            FloatingPointError: some are not finite; nothing is counted then. The text says how many.
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
        """Of everything that was added."""
        return InputStatistics(
            channel_absmax=self._channel_absmax.cpu(),
            channel_mean_square=(self._square_sum / self._rows).float().cpu(),
            percentiles=_percentiles(self._histogram.cpu(), self._channel_absmax.amax().cpu()),
            absmax_by_step=self._absmax_by_step.cpu(),
            gram=(self._gram_sum / self._rows).cpu(),
        )


def _histogram(magnitudes: Tensor) -> Tensor:
    """Counts (bins,) of finite magnitudes, float32."""
    bits = magnitudes.view(torch.int32).flatten()
    first = (_LOWEST_EXPONENT + _EXPONENT_BIAS) << _BINS_BITS
    bins = (bits >> (_MANTISSA_BITS - _BINS_BITS)).sub_(first).clamp_(0, _BINS - 1)
    return torch.bincount(bins, minlength=_BINS)


def _edges() -> Tensor:
    """Where bins begin and the last one ends, (bins + 1,) float64."""
    first = (_LOWEST_EXPONENT + _EXPONENT_BIAS) << _BINS_BITS
    bits = torch.arange(first, first + _BINS + 1, dtype=torch.int32) << (_MANTISSA_BITS - _BINS_BITS)
    return bits.view(torch.float32).double()


def _percentiles(histogram: Tensor, largest: Tensor) -> Tensor:
    """`PERCENTILES` (4,) float32 by straight lines inside the bins, no one above the `largest` magnitude."""
    cumulative = histogram.cumsum(0).double()
    ranks = torch.tensor(PERCENTILES, dtype=torch.float64) / 100 * cumulative[-1]
    bins = torch.searchsorted(cumulative, ranks)
    counts = histogram[bins].double()
    share = (ranks - (cumulative[bins] - counts)) / counts
    edges = _edges()
    values = (edges[bins] + share * (edges[bins + 1] - edges[bins])).float()
    return torch.minimum(values, largest).where(bins > 0, 0.0)
