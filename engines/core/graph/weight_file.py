"""The tensors of a weight file as its header lists them, which the places of a graph's weights are compared with.

A graph has the places of its weights as offsets, and a file may have moved behind a header of another length. Every
engine would read the bytes that are there, and draw.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from qwen_image_engine.engines.core.dtypes import STORED


@dataclass(frozen=True)
class StoredTensor:
    """The place of a tensor in a file: `nbytes` bytes at `offset`, little-endian, row-major.

    `dtype` is safetensors' spelling: F32, BF16, F16, ...
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class WeightFile:
    """The tensors of a weight file.

    Args:
        tensors: the tensors that the file's header lists.
    """

    def __init__(self, tensors: Iterable[StoredTensor]) -> None:
        self._tensors = sorted(tensors, key=lambda tensor: (tensor.offset, tensor.nbytes))
        self._offsets = [tensor.offset for tensor in self._tensors]
        self._by_name = {tensor.name: tensor for tensor in self._tensors}

    def __iter__(self) -> Iterator[StoredTensor]:
        """Yield the tensors in the order of their bytes."""
        return iter(self._tensors)

    def holds(self, wanted: StoredTensor) -> bool:
        """Return whether `wanted` is a tensor of the file, or whole rows of one.

        The names may be others: a checkpoint in a single file has its own, and a graph that is linked to it reads rows
        of its fused linears. A name that the file has is of the tensor there.
        """
        held = self._by_name.get(wanted.name) or self.at(wanted.offset)
        return held is not None and _are_rows(wanted, held)

    def at(self, offset: int) -> StoredTensor | None:
        """Return the tensor that has the byte at `offset`; None if there is none."""
        index = bisect_right(self._offsets, offset) - 1
        if index < 0 or offset >= self._offsets[index] + self._tensors[index].nbytes:
            return None
        return self._tensors[index]


def _are_rows(part: StoredTensor, whole: StoredTensor) -> bool:
    if part.dtype != whole.dtype or len(part.shape) != len(whole.shape) or part.shape[1:] != whole.shape[1:]:
        return False
    row_bytes = math.prod(part.shape[1:]) * STORED[part.dtype].bytes
    first = part.offset - whole.offset
    if first < 0 or first + part.nbytes > whole.nbytes:
        return False
    return part.nbytes == whole.nbytes or (row_bytes > 0 and first % row_bytes == 0)
