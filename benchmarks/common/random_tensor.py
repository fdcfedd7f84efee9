"""Tensors of random values, written as a stream from one pool of normal numbers, each from a start of its own.

Drawing 16 billion numbers would take half an hour; scaling as many takes half a minute.
"""

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch

from qwen_image_engine.engines.core.dtypes import STORED_FLOATS

# Odd, so that the rows of a matrix, whose length is even, do not come again.
POOL = 2**24 - 3
BLOCK = 2**23

# SiLU passes on a fraction of what comes in: without it the gates of random weights would be nearly shut.
_TIME_GAIN = 2.0


@dataclass(frozen=True)
class RandomTensor:
    """An entry of a weight file with random values. The same name gives the same values."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def blocks(self) -> Iterator[memoryview]:
        """Yield the bytes in blocks of at most 16 MB of bf16 or 32 MB of fp32."""
        mean, std = distribution(self.name, self.shape)
        dtype: torch.dtype = getattr(torch, STORED_FLOATS[self.dtype].name)
        start, rest = zlib.crc32(self.name.encode()) % POOL, math.prod(self.shape)
        while rest:
            count = min(rest, BLOCK, POOL - start)
            values = pool()[start : start + count] * std
            yield values.add_(mean).to(dtype).view(torch.uint8).numpy().data
            start, rest = (start + count) % POOL, rest - count


@cache
def pool() -> torch.Tensor:
    """Return the pool of normal numbers, 67 MB."""
    return torch.randn(POOL, generator=torch.Generator().manual_seed(0))


def distribution(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Return mean and standard deviation that keep the size of activations from a linear's input to its output."""
    if "text_norm" in name:
        return 0.0, 0.1  # stored minus one
    if name.endswith("gamma") or (len(shape) == 1 and name.endswith("weight")):
        return 1.0, 0.1
    if len(shape) == 1:
        return 0.0, 0.02
    return 0.0, (_TIME_GAIN if "timestep_embedder" in name else 1.0) / math.prod(shape[1:]) ** 0.5
