"""Scales of the channels between two linears.

The rows of the first weight are multiplied by the scales, and the columns of the second weight are divided by them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from qwen_image_engine.calibration.quantise.network import QuantisedNetwork
from qwen_image_engine.calibration.quantise.smoothing import equalising_scales, for_heads, shared_by_heads
from qwen_image_engine.calibration.quantise.static_input import StaticInput
from qwen_image_engine.calibration.rules.linears import WEIGHT
from qwen_image_engine.calibration.rules.pairs import Pair
from qwen_image_engine.reference.storage.tensor_blocks import row_blocks
from qwen_image_engine.reference.storage.tensor_file import TensorInfo


class ChannelScales(Protocol):
    """The scales of one set of channels, a few thousand numbers. They are computed at the first access and cached."""

    @property
    def row_scales(self) -> Tensor:
        """Factors (C,) of the rows of the weight before the channels."""
        ...

    @property
    def column_scales(self) -> Tensor:
        """Divisors of the columns of the weight after the channels: (C,), or more if heads share values."""
        ...


class EqualisedPair:
    """The channel scales of an equalised pair, computed in one pass over each of the two weights."""

    def __init__(self, pair: Pair, first: TensorInfo, second: TensorInfo) -> None:
        self.pair, self.first, self.second = pair, first, second

    @cached_property
    def row_scales(self) -> Tensor:
        """Factors (C,) of the first weight's rows."""
        # Allocated before the blocks: small pieces kept between large ones that come and go tear the heap apart.
        rows, done = torch.empty(self.first.shape[0], dtype=torch.float64), 0
        for block in row_blocks(self.first):
            rows[done : done + len(block)] = block.double().square().sum(dim=1).sqrt()
            done += len(block)
        columns = torch.zeros(self.second.shape[1], dtype=torch.float64)
        for block in row_blocks(self.second):
            columns += block.double().square().sum(dim=0)
        return equalising_scales(rows, shared_by_heads(columns.sqrt(), self.pair.groups, len(rows)))

    @property
    def column_scales(self) -> Tensor:
        """Divisors of the second weight's columns: (C,), or more if heads share values."""
        return for_heads(self.row_scales, self.pair.groups, self.second.shape[1])


class SmoothedChannels:
    """The channel scales of a smoothed input: reciprocals of the smoothing scales, for both sides of the channels."""

    def __init__(self, channels: StaticInput) -> None:
        self.channels = channels

    @property
    def row_scales(self) -> Tensor:
        """Factors (C,) of the rows of the weight before the input."""
        return 1 / self.channels.smoothing.scales

    @property
    def column_scales(self) -> Tensor:
        """Divisors (C,) of the columns of the weights that read the input."""
        return 1 / self.channels.smoothing.scales


def channel_scales(
    tensors: Mapping[str, TensorInfo], quantised: QuantisedNetwork
) -> tuple[Mapping[str, ChannelScales], Mapping[str, ChannelScales]]:
    """Return the scales for rows of weights and the scales for columns of weights, both by the linear's name.

    Args:
        tensors: the network's tensors by name.
        quantised: the network's pairs and, with static scales, its inputs.

    """
    rows: dict[str, ChannelScales] = {}
    columns: dict[str, ChannelScales] = {
        name: SmoothedChannels(item) for name, item in quantised.inputs.items() if item.smooth
    }
    for pair in quantised.pairs:
        if not quantised.inputs:
            columns[pair.second] = EqualisedPair(pair, tensors[pair.first + WEIGHT], tensors[pair.second + WEIGHT])
        rows[pair.first] = columns[pair.second]
    return rows, columns
