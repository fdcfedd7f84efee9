"""A stream of the first CUDA device, with page-locked memory for its copies, CUDA graphs captured from it, and events.

The driver is called through its own library, as in `engines.cuda.memory`. TensorRT takes the stream by its handle.
"""

import contextlib
import ctypes
import weakref
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from qwen_image_engine.engines.core.device_array import DeviceMemory
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.cuda.memory import CudaContext, CudaMemory

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for the default stream
_BLOCKING_SYNC = 1  # CU_EVENT_BLOCKING_SYNC: whoever waits for it leaves its core to others

_RELAXED = 2
"""CU_STREAM_CAPTURE_MODE_RELAXED: memory that is allocated or freed during a capture does not break it.

That holds in the capturing thread too, where the garbage collector may run the finalizers of memory at any time
(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL forbids that). The caller of the capture holds the memory that the captured work
reads and writes."""


class HostMemory:
    """Page-locked host memory. The device copies from it and to it while the host continues.

    The array `bytes` is all of the memory. `bytes` does not keep the memory alive: it is freed with this object.
    """

    def __init__(self, context: CudaContext, nbytes: int) -> None:
        """Allocate page-locked memory.

        Raises:
            OutOfDeviceMemory: the driver cannot lock `nbytes` bytes.
            QwenImageError: the driver returns another error.
        """
        address = context.make(self, "cuMemHostAlloc", "cuMemFreeHost", ctypes.c_size_t(nbytes), ctypes.c_uint(0))
        self.address = address.value or 0
        self.bytes: NDArray[np.uint8] = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(self.address))


class CudaGraph:
    """A captured CUDA graph. Each launch uses the addresses and sizes of the capture."""

    def __init__(self, context: CudaContext, stream: int, executable: ctypes.c_void_p) -> None:
        self._context, self._stream, self._executable = context, stream, executable
        weakref.finalize(self, context.call, "cuGraphExecDestroy", executable)

    def launch(self) -> None:
        """Enqueue the graph in its stream.

        Raises:
            QwenImageError: the driver does not launch the graph.
        """
        self._context.call("cuGraphLaunch", self._executable, ctypes.c_void_p(self._stream))


class CudaEvent:
    """An event: a mark in a stream that tells whether and when the device reached it."""

    def __init__(self, context: CudaContext) -> None:
        """Create an event, in no stream yet.

        Raises:
            QwenImageError: the driver does not create the event.
        """
        self._context = context
        self.handle = context.make(self, "cuEventCreate", "cuEventDestroy_v2", ctypes.c_uint(_BLOCKING_SYNC))

    def wait(self) -> None:
        """Wait until the device has reached the event.

        Raises:
            QwenImageError: work before the event failed.
        """
        self._context.call("cuEventSynchronize", self.handle)

    def seconds_since(self, earlier: "CudaEvent") -> float:
        """Return the seconds between `earlier` and this event, with a resolution of half a microsecond.

        Raises:
            QwenImageError: the device has not reached both events.
        """
        milliseconds = ctypes.c_float()
        self._context.call("cuEventElapsedTime", ctypes.byref(milliseconds), earlier.handle, self.handle)
        return milliseconds.value / 1000


class CudaStream:
    """A stream, whose work runs in order while the host goes on. Every method except `synchronise` returns at once.

    Errors of work that runs later are raised by the next call, whichever it is.
    """

    def __init__(self, context: CudaContext) -> None:
        """Create a stream.

        Raises:
            QwenImageError: the driver does not create the stream.
        """
        stream = context.make(self, "cuStreamCreate", "cuStreamDestroy_v2", ctypes.c_uint(_NON_BLOCKING))
        self.context = context
        self.handle = stream.value or 0

    def upload(self, target: DeviceMemory, source: HostMemory, nbytes: int, start: int = 0, *, into: int = 0) -> None:
        """Enqueue a copy of `nbytes` bytes of `source`, from `start` on, to byte `into` of `target`.

        The bytes of `source` must not change before the copy is done.
        """
        to, origin = ctypes.c_uint64(target.address + into), ctypes.c_void_p(source.address + start)
        self.context.call("cuMemcpyHtoDAsync_v2", to, origin, ctypes.c_size_t(nbytes), self._handle)

    def download(self, target: HostMemory, source: CudaMemory, nbytes: int) -> None:
        """Enqueue a copy of the first `nbytes` bytes of `source` to `target`."""
        arguments = ctypes.c_void_p(target.address), ctypes.c_uint64(source.address), ctypes.c_size_t(nbytes)
        self.context.call("cuMemcpyDtoHAsync_v2", *arguments, self._handle)

    def record(self, event: CudaEvent) -> None:
        """Enqueue an event after all earlier work."""
        self.context.call("cuEventRecord", event.handle, self._handle)

    def capture(self, enqueue: Callable[[], None]) -> CudaGraph:
        """Capture the work that `enqueue` puts into this stream and return the CUDA graph. The work does not run yet.

        An exception of `enqueue` ends the capture and is passed on.

        Raises:
            QwenImageError: `enqueue` did something that cannot be captured.
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
        """Wait until all work in the stream is done.

        Raises:
            QwenImageError: some of the work failed.
        """
        self.context.call("cuStreamSynchronize", self._handle)

    @property
    def _handle(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.handle)
