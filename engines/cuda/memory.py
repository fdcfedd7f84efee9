"""Memory and context of the first CUDA device, through the driver's own library: no CUDA package is needed."""

import ctypes
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from qwen_image_engine.engines.core.device_array import DeviceMemory
from qwen_image_engine.engines.core.errors import OutOfDeviceMemory
from qwen_image_engine.engines.cuda.driver import LIBRARY, call


@dataclass(frozen=True, eq=False)
class CudaContext:
    """The primary context of the first device, which ONNX Runtime and TensorRT use as well.

    It is retained until the process ends.
    """

    cuda: ctypes.CDLL
    context: ctypes.c_void_p

    @classmethod
    def open(cls, library: str = LIBRARY) -> Self:
        """Retain the primary context. `device_info` must have found a device before.

        Raises:
            QwenImageError: a call of the driver fails.
        """
        cuda, device, context = ctypes.CDLL(library), ctypes.c_int(), ctypes.c_void_p()
        call(cuda, "cuInit", ctypes.c_uint(0))
        call(cuda, "cuDeviceGet", ctypes.byref(device), ctypes.c_int(0))
        call(cuda, "cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        return cls(cuda, context)

    def call(self, function: str, *arguments: object) -> None:
        """Call a function of the driver in this context.

        Raises:
            QwenImageError: the function fails.
        """
        with self.current():
            call(self.cuda, function, *arguments)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make this context the current one of the thread, for libraries that ask the driver for the current context.

        Raises:
            QwenImageError: the driver does not make the context current.
        """
        call(self.cuda, "cuCtxPushCurrent_v2", self.context)
        try:
            yield
        finally:
            self.cuda.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))

    def make(self, owner: object, create: str, destroy: str, *arguments: object) -> ctypes.c_void_p:
        """Return the handle that the function `create` writes to its first argument.

        `destroy` is called on the handle when `owner` is deleted.

        Raises:
            QwenImageError: `create` fails.
        """
        handle = ctypes.c_void_p()
        self.call(create, ctypes.byref(handle), *arguments)
        weakref.finalize(owner, self.call, destroy, handle)
        return handle

    def free_bytes(self) -> int:
        """Return the free bytes of the device's memory."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value


class CudaMemory:
    """A block of the device's memory; see `DeviceMemory`."""

    def __init__(self, context: CudaContext, nbytes: int, purpose: str = "keys and values") -> None:
        """Allocate memory for `purpose`, not initialised. A block of 0 bytes has the address 0.

        Raises:
            OutOfDeviceMemory: the device has less than `nbytes` free in one piece.
        """
        self._context, self._address = context, 0
        if nbytes:
            address = ctypes.c_uint64()
            try:
                context.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(nbytes))
            except OutOfDeviceMemory as error:
                free = context.free_bytes()
                raise OutOfDeviceMemory(
                    f"{purpose} take {nbytes} bytes and {free} bytes of the GPU's memory are free"
                    f"{f': {nbytes - free} are missing' if nbytes > free else ', not in one piece'}; run with --memory "
                    "sequential, or ask for a smaller size, fewer images or fewer references"
                ) from error
            self._address = address.value
            weakref.finalize(self, context.call, "cuMemFree_v2", address)

    @property
    def address(self) -> int:
        """Device address of the first byte."""
        return self._address

    def allocate(self, nbytes: int) -> "CudaMemory":
        """Allocate another block on the same device.

        Raises:
            OutOfDeviceMemory: the device has less than `nbytes` free in one piece.
        """
        return CudaMemory(self._context, nbytes)

    def copy(self, start: int, source: DeviceMemory, source_start: int, nbytes: int) -> None:
        """Copy bytes of `source` to byte `start` of this block. The copy is finished on return."""
        target, origin = ctypes.c_uint64(self.address + start), ctypes.c_uint64(source.address + source_start)
        self._context.call("cuMemcpyDtoD_v2", target, origin, ctypes.c_size_t(nbytes))
        # Between two places of a device the driver returns before it has copied.
        self._context.call("cuCtxSynchronize")

    def read(self, start: int, nbytes: int) -> NDArray[np.uint8]:
        """Copy `nbytes` bytes from `start` on to the host and return them."""
        host = np.empty(nbytes, np.uint8)
        self._context.call(
            "cuMemcpyDtoH_v2",
            ctypes.c_void_p(host.ctypes.data),
            ctypes.c_uint64(self.address + start),
            ctypes.c_size_t(nbytes),
        )
        return host
