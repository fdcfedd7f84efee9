"""The places of the tensors in a safetensors file."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from qwen_image_engine.engines.core.dtypes import STORED
from qwen_image_engine.engines.core.graph.weight_file import StoredTensor
from qwen_image_engine.runtime.system.tensor_header import read_tensor_header


@dataclass(frozen=True)
class TensorInfo(StoredTensor):
    """The place of a stored tensor, with its file; symlinks are resolved."""

    file: Path

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def stored(self) -> TensorInfo:
        """The part of the tensor that is in the file: the tensor itself, or the weight without updates."""
        return self

    def rows(self, name: str, first: int, count: int) -> TensorInfo:
        """Return `count` rows of the first axis as a tensor of their own. They are a contiguous range of the bytes."""
        row_bytes = math.prod(self.shape[1:]) * STORED[self.dtype].bytes
        return replace(
            self,
            name=name,
            shape=(count, *self.shape[1:]),
            offset=self.offset + first * row_bytes,
            nbytes=count * row_bytes,
        )


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Return the place of every tensor in the safetensors file at `path` by name, in the order of the bytes.

    Raises:
        QwenImageError: the file cannot be read or has another size than its header says, or its header is malformed.
    """
    file = path.resolve()
    return {
        item.name: TensorInfo(item.name, item.dtype, item.shape, item.offset, item.nbytes, file)
        for item in read_tensor_header(path)
    }
