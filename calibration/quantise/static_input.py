"""An input of quantised linears with static scales, fixed at export from calibration statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial

import torch

from qwen_image_engine.calibration.observe.statistics import InputStatistics
from qwen_image_engine.calibration.quantise import fp8, int8
from qwen_image_engine.calibration.quantise.error_feedback import ErrorFeedback
from qwen_image_engine.calibration.quantise.smoothing import Smoothing, best_smoothing
from qwen_image_engine.reference.storage.tensor_blocks import row_blocks
from qwen_image_engine.reference.storage.tensor_file import TensorInfo

SCALE_DTYPE = torch.bfloat16
"""Dtype of every static scale, scales of weights included: TensorRT's graphs have scales in the dtype of activations.
The twin and the simulation round their scales to this dtype too, so that codes are equal."""


def stored_scale(scale: float) -> float:
    """Return the scale rounded to `SCALE_DTYPE`."""
    return float(torch.tensor(scale, dtype=SCALE_DTYPE))


class StaticInput:
    """An input with static scales. Smoothing needs two passes over the weights; it is computed once and cached.

    Args:
        readers: the weights of all linears that read the input, in every precision.
        smooth: whether the input's channels are smoothed.
        statistics: statistics of the input by component that has it.

    """

    def __init__(self, readers: Sequence[TensorInfo], smooth: bool, statistics: Mapping[str, InputStatistics]) -> None:
        self.readers, self.smooth, self.statistics = tuple(readers), smooth, statistics

    @cached_property
    def smoothing(self) -> Smoothing:
        """The best smoothing of the input, if it is smoothed."""
        return best_smoothing(list(self.statistics.values()), [partial(row_blocks, reader) for reader in self.readers])

    def error_feedback(self) -> ErrorFeedback | None:
        """Return the error feedback for rounding the weights, or None if the calibration has no products of channels.

        A weight serves prefix and step, so the products of both components are added, each divided by its mean square.
        Every call computes the factors again, because they take as much memory as the weight of a layer.
        """
        grams = [item.gram for item in self.statistics.values()]
        if not len(grams[0]):
            return None
        total = torch.stack([gram / gram.diagonal(dim1=1, dim2=2).mean() for gram in grams]).sum(dim=0)
        if self.smooth:
            scales = self.smoothing.scales.reshape(total.shape[:2])
            total = total / (scales[:, :, None] * scales[:, None])
        return ErrorFeedback(total)

    def scale(self, component: str, precision: str) -> float:
        """Return the scale (the value of code 1) of the input in `precision` in the graph of `component`."""
        channels = self.statistics[component].channel_absmax
        if self.smooth:
            channels = channels / self.smoothing.scales
        largest = float(channels.max())
        return stored_scale(fp8.MARGIN * largest / fp8.LARGEST if precision == "fp8" else largest / int8.LEVELS)
