"""A device's memory played by numpy, for `DeviceArray` on a machine without a GPU."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qwen_image_engine.engines.core.bfloat16 import to_bfloat16
from qwen_image_engine.engines.core.device_array import DeviceArray, DeviceMemory


class NumpyMemory:
    def __init__(self, nbytes: int) -> None:
        self.bytes = np.full(nbytes, 0xFF, np.uint8)  # read before it is written, this is NaN in every dtype

    @property
    def address(self) -> int:
        return self.bytes.ctypes.data

    def allocate(self, nbytes: int) -> NumpyMemory:
        return NumpyMemory(nbytes)

    def copy(self, start: int, source: DeviceMemory, source_start: int, nbytes: int) -> None:
        assert isinstance(source, NumpyMemory)
        assert start + nbytes <= len(self.bytes)
        assert source_start + nbytes <= len(source.bytes)
        self.bytes[start : start + nbytes] = source.bytes[source_start : source_start + nbytes]

    def read(self, start: int, nbytes: int) -> NDArray[np.uint8]:
        return self.bytes[start : start + nbytes].copy()


def on_device(values: NDArray[np.float32], dtype: str = "float32") -> DeviceArray:
    """`values` in memory of its own."""
    stored = to_bfloat16(values) if dtype == "bfloat16" else values.astype(dtype)
    array = DeviceArray.empty(NumpyMemory(0), values.shape, dtype)
    assert isinstance(array.memory, NumpyMemory)
    array.memory.bytes[:] = np.frombuffer(stored.tobytes(), np.uint8)
    return array
