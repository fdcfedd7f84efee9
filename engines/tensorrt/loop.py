"""The sampling loop in a stream: the host enqueues stage after stage and waits once, for the latents at the end.

It has not run on a GPU yet; `docs/tensorrt-runtime.md` says what has been checked.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from qwen_image_engine.engines.core.contract import Contract
from qwen_image_engine.engines.core.device_array import DeviceArray
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.core.loop import LoopInputs, LoopResult
from qwen_image_engine.engines.cuda.solver_kernel import NEVER, SolverKernel
from qwen_image_engine.engines.cuda.stream import CudaEvent, CudaStream, HostMemory
from qwen_image_engine.engines.tensorrt.device_latents import DeviceLatents

Enqueue = Callable[[Mapping[str, DeviceArray], Mapping[str, DeviceArray]], None]
"""Function that enqueues a run of the network, from its inputs to its outputs, in the stream."""


class TensorRtLoop:
    """The loop of a TensorRT engine; see `Loop`. Everything that the stages need is allocated by the constructor."""

    def __init__(
        self,
        stream: CudaStream,
        kernel: SolverKernel,
        place: DeviceLatents,
        contract: Contract,
        inputs: LoopInputs,
        enqueue: Enqueue,
    ) -> None:
        """Enqueue the first latents, and the inputs that stay the same in all stages.

        Args:
            stream: stream of the engine; nothing in it uses `place` any more.
            kernel: kernel that takes a velocity into the latents.
            place: buffers of the loop.
            contract: contract of the step.
            inputs: inputs of the loop.
            enqueue: function of the engine that enqueues a run.

        Raises:
            OutOfDeviceMemory: the device has no room.
            QwenImageError: the driver returns an error.
        """
        self._stream, self._kernel, self._place, self._loop, self._enqueue = stream, kernel, place, inputs, enqueue
        table = np.ascontiguousarray(inputs.time_features)
        self._row_bytes = table[:1].nbytes
        self._table = HostMemory(stream.context, table.nbytes)
        self._table.bytes[:] = table.reshape(-1).view(np.uint8)
        runs = len(inputs.branches) * len(inputs.stages)
        self._marks = [CudaEvent(stream.context) for _ in range(runs + 1)]
        self._taken = 0
        self.superseded = False
        try:
            self._begin(contract)
        except BaseException:
            self.abandon()
            raise

    def _begin(self, contract: Contract) -> None:
        stream, place, inputs = self._stream, self._place, self._loop
        self._branches = place.fill(stream, contract, inputs)
        (velocity,) = contract.outputs
        self._velocities = [
            {velocity.name: DeviceArray(item.device, inputs.latents.shape, velocity.dtype)} for item in place.velocities
        ]
        place.fault.upload(stream, np.array([NEVER], np.uint32))
        stream.record(self._marks[0])

    def advance(self) -> None:
        """Enqueue the next stage; see `Loop.advance`."""
        if self.superseded:
            raise QwenImageError("step: another run has begun on this engine; take all steps of one before the next")
        index, place, loop = self._taken, self._place, self._loop
        self._stream.upload(place.time_features.device, self._table, self._row_bytes, index * self._row_bytes)
        for number, (inputs, outputs) in enumerate(zip(self._branches, self._velocities, strict=True), start=1):
            self._enqueue(inputs, outputs)
            self._stream.record(self._marks[index * len(self._branches) + number])
        before, earlier = place.terms if index % 2 else place.terms[::-1]
        self._kernel.launch(
            self._stream.handle,
            stage=loop.stages[index],
            latents=place.latents.device.address,
            toward=place.velocities[0].device.address,
            away=place.velocities[-1].device.address,
            before=before.device.address,
            earlier=earlier.device.address,
            fault=place.fault.device.address,
            guidance=loop.guidance,
            count=loop.latents.size,
            index=index,
        )
        self._taken += 1

    def wait(self) -> None:
        """Wait for the last stage; see `Loop.wait`. The kernel that takes the velocity may still be running."""
        self._marks[self._taken * len(self._branches)].wait()

    def read(self) -> tuple[NDArray[np.float32], ...]:
        """Return copies of the latents and velocities; see `Loop.read`."""
        buffers = (self._place.latents, *self._place.velocities)
        arrays = tuple(np.empty_like(self._loop.latents) for _ in buffers)
        for buffer, array in zip(buffers, arrays, strict=True):
            buffer.download(self._stream, array.nbytes)
        self._stream.synchronise()
        for buffer, array in zip(buffers, arrays, strict=True):
            buffer.read(array)
        return arrays

    def finish(self) -> LoopResult:
        """Wait for all stages and return the result; see `Loop.finish`."""
        latents, fault = np.empty_like(self._loop.latents), np.empty(1, np.uint32)
        for buffer, array in ((self._place.latents, latents), (self._place.fault, fault)):
            buffer.download(self._stream, array.nbytes)
        self._stream.synchronise()
        for buffer, array in ((self._place.latents, latents), (self._place.fault, fault)):
            buffer.read(array)
        marks = self._marks[: self._taken * len(self._branches) + 1]
        seconds = tuple(later.seconds_since(earlier) for earlier, later in pairwise(marks))
        return LoopResult(latents, seconds, None if fault[0] == NEVER else int(fault[0]))

    def abandon(self) -> None:
        """Wait until the device has ended all enqueued work; see `Loop.abandon`."""
        with suppress(QwenImageError):
            self._stream.synchronise()
