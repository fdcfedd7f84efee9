"""Keys and values that stay on a device between runs, used as the numpy arrays of the engines on the CPU are."""

from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qwen_image_engine.engines.core.bfloat16 import from_bfloat16, to_bfloat16
from qwen_image_engine.engines.core.dtypes import DTYPES


def size_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Return the bytes that an array of this shape and dtype takes."""
    return prod(shape) * DTYPES[dtype].bytes


class DeviceMemory(Protocol):
    """A stretch of a device's memory; it is freed when nothing refers to it any more.

    What a call did is finished when it returns, so that engines need not share a stream.
    """

    @property
    def address(self) -> int:
        """Of its first byte, on the device."""
        ...

    def allocate(self, nbytes: int) -> "DeviceMemory":
        """Other memory of the same device, not initialised.

        Raises:
            QwenImageError: there is not so much.
        """
        ...

    def copy(self, start: int, source: "DeviceMemory", source_start: int, nbytes: int) -> None:
        """Copy bytes of `source`, memory of the same device, to byte `start` of this."""
        ...

    def read(self, start: int, nbytes: int) -> NDArray[np.uint8]:
        """Bytes from `start` on, copied to the host."""
        ...


@dataclass(frozen=True, eq=False)
class DeviceArray:
    """A contiguous array on a device, row-major from byte `offset` of `memory`; `dtype` is numpy's name, or bfloat16.

    Only what keys and values need is here: shape and sizes, a stretch of tokens of a batch of one as a view, copying
    into one, and reading it to the host.
    """

    memory: DeviceMemory
    shape: tuple[int, ...]
    dtype: str
    offset: int = 0

    @classmethod
    def empty(cls, memory: DeviceMemory, shape: tuple[int, ...], dtype: str) -> "DeviceArray":
        """One that is not initialised, in new memory of the device that `memory` is of.

        Raises:
            QwenImageError: there is not so much.
        """
        return cls(memory.allocate(size_bytes(shape, dtype)), shape, dtype)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return size_bytes(self.shape, self.dtype)

    @property
    def address(self) -> int:
        """Of the first element, on the device."""
        return self.memory.address + self.offset

    def __getitem__(self, key: tuple[slice, slice]) -> "DeviceArray":
        """A view: `array[:, a:b]` of a batch of one, whose tokens then are one stretch of memory."""
        everything, tokens = key
        assert everything == slice(None)
        assert self.shape[0] == 1
        start, stop, step = tokens.indices(self.shape[1])
        assert step == 1
        row = self.nbytes // self.shape[1]
        shape = (1, max(0, stop - start), *self.shape[2:])
        return DeviceArray(self.memory, shape, self.dtype, self.offset + start * row)

    def __setitem__(self, key: tuple[slice, slice], values: "DeviceArray") -> None:
        """Copy `values`, an array of the same device, into `array[:, a:b]`."""
        view = self[key]
        assert (view.shape, view.dtype) == (values.shape, values.dtype)
        self.memory.copy(view.offset, values.memory, values.offset, values.nbytes)

    def numpy(self) -> NDArray[Any]:
        """A copy on the host, bfloat16 as float32."""
        read = self.memory.read(self.offset, self.nbytes)
        if self.dtype == "bfloat16":
            return from_bfloat16(read.view(np.uint16)).reshape(self.shape)
        return read.view(self.dtype).reshape(self.shape)


Values = NDArray[Any] | DeviceArray
"""Keys and values, on the host or on a device."""


def dtype_name(values: Values) -> str:
    """Numpy's name of the dtype, or bfloat16."""
    return values.dtype if isinstance(values, DeviceArray) else values.dtype.name


def stored(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """The array as a device has it: contiguous and in `dtype`, bfloat16 as its bits."""
    return to_bfloat16(values) if dtype == "bfloat16" else np.ascontiguousarray(values, dtype)


def on_host(values: Values) -> NDArray[Any]:
    """An array of numpy as it is, one of a device copied."""
    return values.numpy() if isinstance(values, DeviceArray) else values


def with_room(values: Values, tokens: int) -> Values:
    """An array (1, tokens, …) of the kind of `values` (1, n, …), which it begins with; the rest is not initialised.

    Raises:
        QwenImageError: there is no memory for it.
    """
    shape = (1, tokens, *values.shape[2:])
    if isinstance(values, DeviceArray):
        device = DeviceArray.empty(values.memory, shape, values.dtype)
        device[:, : values.shape[1]] = values
        return device
    host = np.empty(shape, values.dtype)
    host[:, : values.shape[1]] = values
    return host


def repeat(values: Values, count: int) -> Values:
    """An array (count, …), `values` (1, …) for each of a batch; `values` itself for one.

    Raises:
        QwenImageError: there is no memory for it.
    """
    if count == 1:
        return values
    if isinstance(values, DeviceArray):
        repeated = DeviceArray.empty(values.memory, (count, *values.shape[1:]), values.dtype)
        for index in range(count):
            repeated.memory.copy(index * values.nbytes, values.memory, values.offset, values.nbytes)
        return repeated
    return np.repeat(values, count, axis=0)
