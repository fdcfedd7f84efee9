"""The scales of a pair of linears, from one pass over each of its two weights."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from qwen_image_engine.calibration.equalisation import equalising_scales, for_heads, shared_by_heads
from qwen_image_engine.calibration.pairs import Pair
from qwen_image_engine.export.tensor_blocks import row_blocks
from qwen_image_engine.reference.tensor_file import TensorInfo


class EqualisedPair:
    """Scales that are computed when they are first asked for and kept: a few thousand numbers a pair."""

    def __init__(self, pair: Pair, first: TensorInfo, second: TensorInfo) -> None:
        self.pair, self.first, self.second = pair, first, second

    @cached_property
    def row_scales(self) -> Tensor:
        """What the rows of the first weight are multiplied by, (C,)."""
        rows = torch.cat([block.double().square().sum(dim=1) for block in row_blocks(self.first)]).sqrt()
        columns = torch.zeros(self.second.shape[1], dtype=torch.float64)
        for block in row_blocks(self.second):
            columns += block.double().square().sum(dim=0)
        return equalising_scales(rows, shared_by_heads(columns.sqrt(), self.pair.groups, len(rows)))

    @property
    def column_scales(self) -> Tensor:
        """What the columns of the second weight are divided by: (C,), or more where heads share values."""
        return for_heads(self.row_scales, self.pair.groups, self.second.shape[1])
