"""Outliers that change nothing in exact arithmetic, as large models grow them: a test of what quantisation endures."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence

import torch
from torch import Tensor

from qwen_image_engine.calibration.equalisation import for_heads

LARGEST = 60.0
"""Of a channel against the others; the largest that the project promises to endure."""


def plant_outliers(
    tensors: MutableMapping[str, Tensor], pairs: Sequence[tuple[str, str]], groups: int, head_dim: int, seed: int = 0
) -> None:
    """Scale channels between the weights of each of `pairs` by up to `LARGEST`; most of them hardly.

    Rows of the first weight are multiplied and columns of the second divided. Where the second has more columns than
    the first has rows, `groups` heads of `head_dim` values are shared by several heads of columns.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    for first, second in pairs:
        rows, columns = tensors[first].float(), tensors[second].float()
        factors = LARGEST ** torch.rand(len(rows), generator=generator).pow(6)
        shared = factors if columns.shape[1] == len(rows) else for_heads(factors, groups, head_dim, columns.shape[1])
        tensors[first], tensors[second] = rows * factors[:, None], columns / shared
