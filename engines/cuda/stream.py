"""A stream of the first CUDA device: copies from and to page-locked memory, work captured as a graph, marks in time.

Through the driver's own library, as `cuda_memory`; TensorRT takes the stream by its handle.
"""

import contextlib
import ctypes
import weakref
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.cuda.memory import CudaContext, CudaMemory

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for the default stream
_BLOCKING_SYNC = 1  # CU_EVENT_BLOCKING_SYNC: whoever waits for it leaves its core to others

_RELAXED = 2
"""CU_STREAM_CAPTURE_MODE_RELAXED: what is allocated or freed meanwhile does not break a capture, in this thread either,
where the garbage collector may run the finalizers of memory at any time (CU_STREAM_CAPTURE_MODE_THREAD_LOCAL forbids
that). What the capture itself reads and writes is held by whoever captures."""


class HostMemory:
    """Page-locked memory of the host, which the device copies from and to while the host goes on; `bytes` is all of it.

    `bytes` does not keep it: it is freed with this object.
    """

    def __init__(self, context: CudaContext, nbytes: int) -> None:
        """Allocate.

        Raises:
            OutOfDeviceMemory: the driver has not so much that it can lock.
            QwenImageError: it refuses otherwise.
        """
        address = context.make(self, "cuMemHostAlloc", "cuMemFreeHost", ctypes.c_size_t(nbytes), ctypes.c_uint(0))
        self.address = address.value or 0
        self.bytes: NDArray[np.uint8] = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(self.address))


class CudaGraph:
    """Work that was captured, to be launched again with the addresses and sizes that it was captured with."""

    def __init__(self, context: CudaContext, stream: int, executable: ctypes.c_void_p) -> None:
        self._context, self._stream, self._executable = context, stream, executable
        weakref.finalize(self, context.call, "cuGraphExecDestroy", executable)

    def launch(self) -> None:
        """Put it into its stream.

        Raises:
            QwenImageError: the driver refuses it.
        """
        self._context.call("cuGraphLaunch", self._executable, ctypes.c_void_p(self._stream))


class CudaEvent:
    """A mark in a stream: when the device came to it, and that it has."""

    def __init__(self, context: CudaContext) -> None:
        """Make one, in no stream yet.

        Raises:
            QwenImageError: the driver refuses it.
        """
        self._context = context
        self.handle = context.make(self, "cuEventCreate", "cuEventDestroy_v2", ctypes.c_uint(_BLOCKING_SYNC))

    def wait(self) -> None:
        """Wait until the device has come to it.

        Raises:
            QwenImageError: something before it failed.
        """
        self._context.call("cuEventSynchronize", self.handle)

    def seconds_since(self, earlier: "CudaEvent") -> float:
        """Between two that the device has come to, with a resolution of half a microsecond.

        Raises:
            QwenImageError: it has not.
        """
        milliseconds = ctypes.c_float()
        self._context.call("cuEventElapsedTime", ctypes.byref(milliseconds), earlier.handle, self.handle)
        return milliseconds.value / 1000


class CudaStream:
    """A stream; what is put into it runs in order, while the host goes on. Every method but the last returns at once.

    Errors of work that runs later are raised by whichever call comes after it.
    """

    def __init__(self, context: CudaContext) -> None:
        """Make one.

        Raises:
            QwenImageError: the driver refuses it.
        """
        stream = context.make(self, "cuStreamCreate", "cuStreamDestroy_v2", ctypes.c_uint(_NON_BLOCKING))
        self.context = context
        self.handle = stream.value or 0

    def upload(self, target: CudaMemory, source: HostMemory, nbytes: int, start: int = 0) -> None:
        """Copy bytes of `source` from `start` on, which must not change before the copy is done, to `target`."""
        arguments = ctypes.c_uint64(target.address), ctypes.c_void_p(source.address + start), ctypes.c_size_t(nbytes)
        self.context.call("cuMemcpyHtoDAsync_v2", *arguments, self._handle)

    def download(self, target: HostMemory, source: CudaMemory, nbytes: int) -> None:
        """Copy the first bytes of `source` to `target`."""
        arguments = ctypes.c_void_p(target.address), ctypes.c_uint64(source.address), ctypes.c_size_t(nbytes)
        self.context.call("cuMemcpyDtoHAsync_v2", *arguments, self._handle)

    def record(self, event: CudaEvent) -> None:
        """Put a mark behind all that was put before."""
        self.context.call("cuEventRecord", event.handle, self._handle)

    def capture(self, enqueue: Callable[[], None]) -> CudaGraph:
        """What `enqueue` puts into this stream, as a graph; it does not run yet.

        Raises:
            QwenImageError: `enqueue` did something that cannot be captured, or whatever it raised.
        """
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        try:
            self.context.call("cuStreamBeginCapture_v2", self._handle, ctypes.c_int(_RELAXED))
            enqueue()
            self.context.call("cuStreamEndCapture", self._handle, ctypes.byref(graph))
        except BaseException:
            # Whatever it was: a stream that is left in a capture serves nobody. One that went wrong ends with an error
            # of its own, and so does one that has not begun or has ended already.
            with contextlib.suppress(QwenImageError):
                self.context.call("cuStreamEndCapture", self._handle, ctypes.byref(graph))
            if graph:
                self.context.call("cuGraphDestroy", graph)
            raise
        try:
            self.context.call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
        finally:
            self.context.call("cuGraphDestroy", graph)
        return CudaGraph(self.context, self.handle, executable)

    def synchronise(self) -> None:
        """Wait until all of it is done.

        Raises:
            QwenImageError: some of it failed.
        """
        self.context.call("cuStreamSynchronize", self._handle)

    @property
    def _handle(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.handle)
