"""A stored weight with low-rank updates added to it: a tensor that is in no file and is read like one that is.

Hu et al., "LoRA" (arXiv 2106.09685), 4.1: W + (alpha / r) B A.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from qwen_image_engine.engines.core.dtypes import STORED
from qwen_image_engine.reference.storage.tensor_file import TensorInfo


@dataclass(frozen=True)
class LowRank:
    """What is added to a weight (N, K): `factor` times `up` (N, r) times `down` (r, K)."""

    down: TensorInfo
    up: TensorInfo
    factor: float


@dataclass(frozen=True)
class MergedTensor(TensorInfo):
    """The sum in float32, which whoever reads it rounds to the dtype that is wanted: once.

    `dtype` and `nbytes` are those of the sum; `file` and `offset` lead to `base` alone, and
    `tensor_blocks.tensor_blocks` gives the bytes.
    """

    base: TensorInfo
    updates: tuple[LowRank, ...]

    @classmethod
    def of(cls, base: TensorInfo, updates: tuple[LowRank, ...]) -> Self:
        """Of a weight (N, K)."""
        nbytes = base.elements * STORED["F32"].bytes
        return cls(base.name, "F32", base.shape, base.file, base.offset, nbytes, base, updates)

    @property
    def stored(self) -> TensorInfo:
        """The weight without its updates."""
        return self.base
