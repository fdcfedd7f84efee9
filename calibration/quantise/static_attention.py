"""Scales of FP8 attention in one block, fixed at export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from qwen_image_engine.calibration.observe.statistics import InputStatistics
from qwen_image_engine.calibration.quantise import fp8
from qwen_image_engine.calibration.quantise.static_input import StaticInput, stored_scale
from qwen_image_engine.engines.core.dtypes import STORED_FLOATS
from qwen_image_engine.reference.storage.tensor_blocks import tensor_blocks
from qwen_image_engine.reference.storage.tensor_file import TensorInfo


@dataclass(frozen=True)
class StaticAttention:
    """The FP8 attention of one block.

    Attributes:
        norm_q: the weight (d,) of the queries' RMS norm.
        norm_k: the weight (d,) of the keys' RMS norm.
        values: statistics of the values in each component; `step` reads the values that `prefix` computes.
        smoothed: the input of the linear after attention, whose channels are the channels of the values; None if it is
            not smoothed.
    """

    norm_q: TensorInfo
    norm_k: TensorInfo
    values: Sequence[InputStatistics]
    smoothed: StaticInput | None

    def scales(self) -> tuple[float, float, float]:
        """Return the scales (values of code 1) of queries divided by sqrt(d), keys, and values.

        The bounds of queries and keys need no data. Before its weight, an RMS norm gives d numbers with mean square 1,
        so none of them is larger than sqrt(d), and a rotation of pairs does not change this bound.
        """
        largest_q, largest_k = _largest(self.norm_q), _largest(self.norm_k)
        channels = torch.stack([item.channel_absmax for item in self.values]).amax(dim=0)
        if self.smoothed is not None:
            channels = channels / self.smoothed.smoothing.scales
        key = self.norm_k.shape[0] ** 0.5 * largest_k
        value = fp8.MARGIN * float(channels.max())
        query, key, value = (stored_scale(largest / fp8.LARGEST) for largest in (largest_q, key, value))
        return query, key, value


def _largest(weight: TensorInfo) -> float:
    dtype: torch.dtype = getattr(torch, STORED_FLOATS[weight.dtype].name)
    return max(float(torch.frombuffer(block, dtype=dtype).float().abs().max()) for block in tensor_blocks(weight))
