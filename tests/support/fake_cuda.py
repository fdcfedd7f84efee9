"""The CUDA driver played in the host's memory, stricter than the real one.

Work of a stream waits until somebody synchronises, so that what was not waited for is not there; memory that was freed
is never given out again, so that its use is seen; a captured piece of work runs when its graph is launched; kernels are
run from their PTX.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.support.fake_ptx import PtxKernel

Work = Callable[[], None]


class FakeDriver:
    """The library in which `cuda_driver.call` finds functions. Arguments are ctypes', as the driver takes them."""

    def __init__(self, total_bytes: int = 1 << 30, compute_capability: tuple[int, int] = (9, 0)) -> None:
        self.total_bytes = total_bytes
        self.compute_capability = compute_capability
        self.calls: Counter[str] = Counter()
        self.queue: list[Work] = []
        self.captured: list[Work] | None = None
        self._strict = self._broken = False
        self._graphs: dict[int, list[Work]] = {}
        self._device: dict[int, NDArray[np.uint8]] = {}
        self._host: dict[int, NDArray[np.uint8]] = {}
        self._freed: list[NDArray[np.uint8]] = []  # kept, so that no address comes twice
        self._modules: dict[int, str] = {}
        self._kernels: dict[int, PtxKernel] = {}
        self._events: dict[int, int | None] = {}  # milliseconds at which each was passed
        self._clock = 0
        self.depth = 0  # of pushed contexts
        self._handles = count(1)  # none comes twice

    def refuse_captures(self) -> None:
        """Answer the end of each with CUDA_ERROR_STREAM_CAPTURE_INVALIDATED."""

        def refuse(stream: Any, graph: Any) -> int:
            self.captured = None
            return 901

        self.do_cuStreamEndCapture = refuse  # type: ignore[method-assign]

    @property
    def free_bytes(self) -> int:
        return self.total_bytes - sum(len(block) for block in self._device.values())

    def put(self, work: Work) -> None:
        """Into the stream, or into what is being captured."""
        (self.queue if self.captured is None else self.captured).append(work)

    def view(self, address: int, nbytes: int) -> NDArray[np.uint8]:
        """Bytes of the device that are allocated now."""
        for start, block in self._device.items():
            if start <= address and address + nbytes <= start + len(block):
                return block[address - start : address - start + nbytes]
        raise AssertionError(f"{nbytes} bytes at {address:x} are not allocated")

    def __getattr__(self, name: str) -> Callable[..., int]:
        if not name.startswith("cu"):
            raise AttributeError(name)
        function = getattr(self, f"do_{name}")
        needs_context = name.startswith(("cuMem", "cuStream", "cuEvent", "cuGraph", "cuLaunch", "cuModule"))
        assert self.depth >= 1 or not needs_context, name

        def call(*arguments: Any) -> int:
            self.calls[name] += 1
            return int(function(*arguments) or 0)

        return call

    def do_cuInit(self, flags: Any) -> None: ...

    def do_cuDriverGetVersion(self, version: Any) -> None:
        version._obj.value = 13000

    def do_cuDeviceGetCount(self, count: Any) -> None:
        count._obj.value = 1

    def do_cuDeviceGet(self, device: Any, ordinal: Any) -> None:
        device._obj.value = 0

    def do_cuDeviceGetName(self, name: Any, length: Any, device: Any) -> None:
        name.value = b"A GPU"

    def do_cuDeviceGetAttribute(self, value: Any, which: Any, device: Any) -> None:
        value._obj.value = dict(zip((75, 76), self.compute_capability, strict=True))[which.value]

    def do_cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> None:
        context._obj.value = 1

    def do_cuDevicePrimaryCtxRelease_v2(self, device: Any) -> None: ...

    def do_cuCtxPushCurrent_v2(self, context: Any) -> None:
        self.depth += 1

    def do_cuCtxPopCurrent_v2(self, context: Any) -> None:
        self.depth -= 1

    def do_cuCtxSynchronize(self) -> None: ...

    def do_cuMemGetInfo_v2(self, free: Any, total: Any) -> None:
        free._obj.value, total._obj.value = self.free_bytes, self.total_bytes

    def do_cuGetErrorString(self, code: Any, text: Any) -> None:
        text._obj.value = b"out of memory" if code.value == 2 else b"an error"

    def do_cuMemAlloc_v2(self, address: Any, nbytes: Any) -> int:
        self._break_capture()
        if nbytes.value > self.free_bytes:
            return 2
        room = np.full(nbytes.value + 511, 0xFF, np.uint8)  # which is NaN
        block = room[-room.ctypes.data % 512 :][: nbytes.value]
        self._device[block.ctypes.data] = block
        address._obj.value = block.ctypes.data
        return 0

    def do_cuMemFree_v2(self, address: Any) -> None:
        self._break_capture()
        self._freed.append(self._device.pop(address.value))

    def do_cuMemHostAlloc(self, address: Any, nbytes: Any, flags: Any) -> None:
        block = np.full(nbytes.value, 0xFF, np.uint8)
        self._host[block.ctypes.data] = block
        address._obj.value = block.ctypes.data

    def do_cuMemFreeHost(self, address: Any) -> None:
        self._freed.append(self._host.pop(address.value))

    def do_cuMemcpyDtoD_v2(self, target: Any, source: Any, nbytes: Any) -> None:
        self.view(target.value, nbytes.value)[:] = self.view(source.value, nbytes.value)

    def do_cuMemcpyDtoH_v2(self, target: Any, source: Any, nbytes: Any) -> None:
        ctypes.memmove(target.value, self.view(source.value, nbytes.value).ctypes.data, nbytes.value)

    def do_cuMemcpyHtoDAsync_v2(self, target: Any, source: Any, nbytes: Any, stream: Any) -> None:
        first, host = next(
            (first, host) for first, host in self._host.items() if first <= source.value < first + len(host)
        )
        begin, start, size = source.value - first, target.value, nbytes.value
        assert begin + size <= len(host)
        given = host[begin : begin + size].copy()

        def copy() -> None:
            assert first in self._host, "page-locked memory was freed before its upload was done"
            assert np.array_equal(given, host[begin : begin + size]), "filled again before its upload was done"
            self.view(start, size)[:] = given

        self.put(copy)

    def do_cuMemcpyDtoHAsync_v2(self, target: Any, source: Any, nbytes: Any, stream: Any) -> None:
        at, host, start, size = target.value, self._host[target.value], source.value, nbytes.value

        def copy() -> None:
            assert at in self._host, "page-locked memory was freed before its download was done"
            host[:size] = self.view(start, size)

        self.put(copy)

    def do_cuStreamCreate(self, stream: Any, flags: Any) -> None:
        assert flags.value == 1
        stream._obj.value = 0x57

    def do_cuStreamDestroy_v2(self, stream: Any) -> None: ...

    def do_cuStreamSynchronize(self, stream: Any) -> int:
        if self.captured is not None:
            return 900
        while self.queue:
            self._work()
        return 0

    def _work(self) -> None:
        self._clock += 1
        self.queue.pop(0)()

    def do_cuEventCreate(self, event: Any, flags: Any) -> None:
        assert flags.value == 1  # with times
        event._obj.value = next(self._handles)
        self._events[event._obj.value] = None

    def do_cuEventDestroy_v2(self, event: Any) -> None:
        del self._events[event.value]

    def do_cuEventRecord(self, event: Any, stream: Any) -> None:
        assert self.captured is None
        handle = event.value
        self._events[handle] = None

        def pass_it() -> None:
            if handle in self._events:  # the driver keeps one that is destroyed meanwhile to that end
                self._events[handle] = self._clock

        self.put(pass_it)

    def do_cuEventSynchronize(self, event: Any) -> None:
        while self._events[event.value] is None:
            self._work()

    def do_cuEventElapsedTime(self, milliseconds: Any, start: Any, end: Any) -> int:
        first, last = self._events[start.value], self._events[end.value]
        if first is None or last is None:
            return 600
        milliseconds._obj.value = last - first
        return 0

    def do_cuModuleLoadData(self, module: Any, image: Any) -> None:
        module._obj.value = next(self._handles)
        self._modules[module._obj.value] = image.value.decode()

    def do_cuModuleUnload(self, module: Any) -> None:
        del self._modules[module.value]

    def do_cuModuleGetFunction(self, function: Any, module: Any, name: Any) -> None:
        function._obj.value = next(self._handles)
        self._kernels[function._obj.value] = PtxKernel(self._modules[module.value], name.value.decode())

    def do_cuLaunchKernel(self, function: Any, *arguments: Any) -> None:
        *sizes, shared, stream, places, extra = arguments
        grid, block = sizes[0].value, sizes[3].value
        assert [size.value for size in sizes] == [grid, 1, 1, block, 1, 1]
        assert (shared.value, stream.value, extra) == (0, 0x57, None)
        kernel = self._kernels[function.value]
        kinds = {"u32": ctypes.c_uint32, "u64": ctypes.c_uint64, "f32": ctypes.c_float}
        values = [
            kinds[kind].from_address(place).value for (kind, _), place in zip(kernel.parameters, places, strict=True)
        ]
        self.put(lambda: kernel.run(grid, block, values, self.view))

    def do_cuStreamBeginCapture_v2(self, stream: Any, mode: Any) -> None:
        assert self.captured is None
        self.captured, self._strict, self._broken = [], mode.value != 2, False

    def _break_capture(self) -> None:
        """Calls that a capture that is not relaxed forbids its own thread."""
        if self.captured is not None and self._strict:
            self._broken = True

    def do_cuStreamEndCapture(self, stream: Any, graph: Any) -> int:
        if self.captured is None:
            return 901
        if self._broken:
            self.captured = None
            return 901
        graph._obj.value = next(self._handles)
        self._graphs[graph._obj.value], self.captured = self.captured, None
        return 0

    def do_cuGraphInstantiateWithFlags(self, executable: Any, graph: Any, flags: Any) -> None:
        executable._obj.value = graph.value

    def do_cuGraphDestroy(self, graph: Any) -> None: ...

    def do_cuGraphExecDestroy(self, executable: Any) -> None:
        del self._graphs[executable.value]

    def do_cuGraphLaunch(self, executable: Any, stream: Any) -> None:
        for work in self._graphs[executable.value]:
            self.put(work)
