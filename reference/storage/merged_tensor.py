"""A stored weight plus low-rank updates: a tensor that is in no file and is read like a stored tensor.

Hu et al., "LoRA" (arXiv 2106.09685), 4.1: W + (alpha / r) B A.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from qwen_image_engine.engines.core.dtypes import STORED
from qwen_image_engine.reference.storage.tensor_file import TensorInfo


@dataclass(frozen=True)
class LowRank:
    """A low-rank update of a weight (N, K): `factor` times `up` (N, r) times `down` (r, K)."""

    down: TensorInfo
    up: TensorInfo
    factor: float


@dataclass(frozen=True)
class MergedTensor(TensorInfo):
    """The sum of a weight and updates in float32, so that a reader rounds once, to the dtype it needs.

    `dtype` and `nbytes` describe the sum. `file` and `offset` lead to `base` alone; read the bytes of the sum with
    `tensor_blocks.tensor_blocks`.
    """

    base: TensorInfo
    updates: tuple[LowRank, ...]

    @classmethod
    def of(cls, base: TensorInfo, updates: tuple[LowRank, ...]) -> Self:
        """Return the sum of a weight (N, K) and updates."""
        nbytes = base.elements * STORED["F32"].bytes
        return cls(base.name, "F32", base.shape, base.offset, nbytes, base.file, base, updates)

    @property
    def stored(self) -> TensorInfo:
        """The weight without its updates."""
        return self.base
