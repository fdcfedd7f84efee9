"""Arrays of keys and values that stay on a device between runs, with the interface of numpy arrays on the CPU."""

from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qwen_image_engine.engines.core.bfloat16 import from_bfloat16, to_bfloat16
from qwen_image_engine.engines.core.dtypes import DTYPES


def size_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Return the size in bytes of an array of this shape and dtype."""
    return prod(shape) * DTYPES[dtype].bytes


class DeviceMemory(Protocol):
    """A block of a device's memory. It is freed when nothing refers to it any more.

    Every call is finished when it returns, so engines need not share a stream.
    """

    @property
    def address(self) -> int:
        """Device address of the first byte."""
        ...

    def allocate(self, nbytes: int) -> "DeviceMemory":
        """Allocate another block on the same device, not initialised.

        Raises:
            QwenImageError: the device has less than `nbytes` free.
        """
        ...

    def copy(self, start: int, source: "DeviceMemory", source_start: int, nbytes: int) -> None:
        """Copy bytes of `source`, a block on the same device, to byte `start` of this block."""
        ...

    def read(self, start: int, nbytes: int) -> NDArray[np.uint8]:
        """Copy `nbytes` bytes from `start` on to the host and return them."""
        ...


@dataclass(frozen=True, eq=False)
class DeviceArray:
    """A contiguous array on a device, row-major from byte `offset` of `memory`; `dtype` is a name of `DTYPES`.

    Only operations that keys and values need are here: shape and sizes, a view of a range of tokens in a batch of one,
    copying into a view, and reading to the host.
    """

    memory: DeviceMemory
    shape: tuple[int, ...]
    dtype: str
    offset: int = 0

    @classmethod
    def empty(cls, memory: DeviceMemory, shape: tuple[int, ...], dtype: str) -> "DeviceArray":
        """Return an array that is not initialised, in new memory on the device of `memory`.

        Raises:
            QwenImageError: the device has not enough free memory.
        """
        return cls(memory.allocate(size_bytes(shape, dtype)), shape, dtype)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return size_bytes(self.shape, self.dtype)

    @property
    def address(self) -> int:
        """Device address of the first element."""
        return self.memory.address + self.offset

    def __getitem__(self, key: tuple[slice, slice]) -> "DeviceArray":
        """Return the view `array[:, a:b]`. The batch must be one, so that its tokens are contiguous in memory."""
        everything, tokens = key
        assert everything == slice(None)
        assert self.shape[0] == 1
        start, stop, step = tokens.indices(self.shape[1])
        assert step == 1
        row = self.nbytes // self.shape[1]
        shape = (1, max(0, stop - start), *self.shape[2:])
        return DeviceArray(self.memory, shape, self.dtype, self.offset + start * row)

    def __setitem__(self, key: tuple[slice, slice], values: "DeviceArray") -> None:
        """Copy `values`, an array on the same device, into `array[:, a:b]`."""
        view = self[key]
        assert (view.shape, view.dtype) == (values.shape, values.dtype)
        self.memory.copy(view.offset, values.memory, values.offset, values.nbytes)

    def numpy(self) -> NDArray[Any]:
        """Return a copy on the host. bfloat16 becomes float32; codes of FP8 stay codes, in uint8."""
        read = self.memory.read(self.offset, self.nbytes)
        if self.dtype == "bfloat16":
            return from_bfloat16(read.view(np.uint16)).reshape(self.shape)
        return read.view(DTYPES[self.dtype].numpy).reshape(self.shape)


Values = NDArray[Any] | DeviceArray
"""An array of keys or values, on the host or on a device."""


def dtype_name(values: Values) -> str:
    """Return the name of the dtype: numpy's on the host, a name of `DTYPES` on a device."""
    return values.dtype if isinstance(values, DeviceArray) else values.dtype.name


def stored(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return the array as a device stores it: contiguous and in `dtype`.

    bfloat16 is its bits in uint16. Codes of FP8 come and go in uint8.
    """
    return to_bfloat16(values) if dtype == "bfloat16" else np.ascontiguousarray(values, DTYPES[dtype].numpy)


def on_host(values: Values) -> NDArray[Any]:
    """Return a numpy array unchanged, or a copy of a device array on the host."""
    return values.numpy() if isinstance(values, DeviceArray) else values


def with_room(values: Values, tokens: int) -> Values:
    """Return an array (1, tokens, …) that begins with `values` (1, n, …), on the same device or host.

    The rest of the array is not initialised.

    Raises:
        QwenImageError: the device has no memory for the array.
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
    """Return an array (count, …) that repeats `values` (1, …) for each image of a batch.

    If `count` is 1, return `values` itself.

    Raises:
        QwenImageError: the device has no memory for the array.
    """
    if count == 1:
        return values
    if isinstance(values, DeviceArray):
        repeated = DeviceArray.empty(values.memory, (count, *values.shape[1:]), values.dtype)
        for index in range(count):
            repeated.memory.copy(index * values.nbytes, values.memory, values.offset, values.nbytes)
        return repeated
    return np.repeat(values, count, axis=0)
