"""An input of quantised linears whose scales are fixed at export, from what calibration saw of it."""

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
"""Of every static scale, those of weights too: TensorRT's graphs hold them in the dtype of their activations. Twin and
simulation round theirs the same, so that codes are the same."""


def stored_scale(scale: float) -> float:
    """The nearest scale that `SCALE_DTYPE` has."""
    return float(torch.tensor(scale, dtype=SCALE_DTYPE))


class StaticInput:
    """Scales are found when they are first asked for, from two passes over the weights, and kept.

    Args:
        readers: the weights of all linears that read the input, in every precision.
        smooth: whether its channels are smoothed.
        statistics: by component, of those that have the input.

    """

    def __init__(self, readers: Sequence[TensorInfo], smooth: bool, statistics: Mapping[str, InputStatistics]) -> None:
        self.readers, self.smooth, self.statistics = tuple(readers), smooth, statistics

    @cached_property
    def smoothing(self) -> Smoothing:
        """Of an input that is smoothed."""
        return best_smoothing(list(self.statistics.values()), [partial(row_blocks, reader) for reader in self.readers])

    def error_feedback(self) -> ErrorFeedback | None:
        """For rounding the weights that read it; None where a calibration keeps no products of channels.

        Of prefix and step together, each by its own mean square: a weight serves both. Factors are found anew at every
        call: they take as much memory as the weight of a layer.
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
        """The value of code 1 of the input in `precision`, as the graph of `component` has it."""
        channels = self.statistics[component].channel_absmax
        if self.smooth:
            channels = channels / self.smoothing.scales
        largest = float(channels.max())
        return stored_scale(fp8.MARGIN * largest / fp8.LARGEST if precision == "fp8" else largest / int8.LEVELS)
