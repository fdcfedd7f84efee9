"""Checks that stored weights are finite, in the blocks in which they are read anyway.

The least and the largest value of a block are NaN if one value is (torch, `aminmax`), and take a tenth of the time of
its SHA-256.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.reference.storage.tensor_file import TensorInfo


class NotFiniteError(QwenImageError):
    """The error of a weight that is NaN or infinite, in `source`."""

    def __init__(self, source: TensorInfo, text: str) -> None:
        super().__init__(f"{source.file}: tensor {source.name!r} has {text}")
        self.source = source


def check_finite(source: TensorInfo, values: Tensor, first: int = 0) -> None:
    """Raise if a value of a block is not finite.

    Args:
        source: tensor that the block belongs to.
        values: block of the tensor, of any shape.
        first: index of the block's first value in the flat tensor.

    Raises:
        NotFiniteError: a value is NaN or infinite; the text names the tensor and the first such value.
    """
    if _finite(values):
        return
    where, value = _first(source, values, first)
    advice = "download the file again, or take another"
    raise NotFiniteError(source, f"values that are not finite, the first {value} at {where}; {advice}")


def check_converted(source: TensorInfo, converted: Tensor, first: int = 0) -> None:
    """Raise if finite values became infinite in the dtype of `converted`; arguments as in `check_finite`.

    Raises:
        NotFiniteError: a value is beyond the dtype; the text names the tensor, the place and the dtype.
    """
    if _finite(converted):
        return
    where, _ = _first(source, converted, first)
    dtype = converted.dtype
    raise NotFiniteError(
        source,
        f"a value at {where} that {str(dtype).removeprefix('torch.')} cannot hold (its largest is "
        f"{torch.finfo(dtype).max:g}); export in another precision",
    )


def _finite(values: Tensor) -> bool:
    return values.numel() == 0 or all(math.isfinite(float(bound)) for bound in values.aminmax())


def _first(source: TensorInfo, values: Tensor, first: int) -> tuple[list[int], float]:
    """Return the place in the tensor, and the value, of the first value of a block that is not finite."""
    index = int((~torch.isfinite(values)).reshape(-1).int().argmax())
    rest = first + index
    where: list[int] = []
    for size in reversed(source.shape):
        rest, axis = divmod(rest, size)
        where.insert(0, axis)
    return where, float(values.reshape(-1)[index])
