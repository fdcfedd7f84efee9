"""Buffers of a sampling loop on a device: latents, velocities, and the inputs of a step that are not keys or values."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from qwen_image_engine.engines.core.contract import Contract
from qwen_image_engine.engines.core.device_array import DeviceArray, Values, size_bytes, stored
from qwen_image_engine.engines.core.loop import LoopInputs
from qwen_image_engine.engines.cuda.buffer import DeviceBuffer
from qwen_image_engine.engines.cuda.memory import CudaContext
from qwen_image_engine.engines.cuda.stream import CudaStream

_FAULT_BYTES = 4


@dataclass(frozen=True, eq=False)
class DeviceLatents:
    """The buffers for pictures of one size, used for one picture after the other: CUDA graphs hold their addresses.

    Attributes:
        latents: latents before each stage, overwritten with the latents after it.
        terms: terms of the two stages before; a stage overwrites the older one with its own.
        time_features: time features of the stage.
        fixed: buffers by name, for each branch, of the inputs that come from the host once a picture.
        velocities: velocity of each branch.
        fault: one uint32, the index of the first stage whose velocity was not finite.
    """

    latents: DeviceBuffer
    terms: tuple[DeviceBuffer, DeviceBuffer]
    time_features: DeviceBuffer
    fixed: tuple[Mapping[str, DeviceBuffer], ...]
    velocities: tuple[DeviceBuffer, ...]
    fault: DeviceBuffer

    @classmethod
    def like(cls, context: CudaContext, contract: Contract, inputs: LoopInputs) -> "DeviceLatents":
        """Allocate buffers for steps of these sizes. Nothing is copied yet.

        Raises:
            OutOfDeviceMemory: the device has no room for the buffers.
        """
        dtypes = {spec.name: spec.dtype for spec in contract.inputs}

        def room(branch: Mapping[str, Values]) -> dict[str, DeviceBuffer]:
            on_host = {name: values for name, values in branch.items() if not isinstance(values, DeviceArray)}
            return {
                name: DeviceBuffer(context, size_bytes(values.shape, dtypes[name])) for name, values in on_host.items()
            }

        nbytes = inputs.latents.nbytes
        return cls(
            latents=DeviceBuffer(context, nbytes),
            terms=(DeviceBuffer(context, nbytes), DeviceBuffer(context, nbytes)),
            time_features=DeviceBuffer(context, inputs.time_features[:1].nbytes),
            fixed=tuple(room(branch) for branch in inputs.branches),
            velocities=tuple(DeviceBuffer(context, nbytes) for _ in inputs.branches),
            fault=DeviceBuffer(context, _FAULT_BYTES),
        )

    def fill(self, stream: CudaStream, contract: Contract, inputs: LoopInputs) -> list[dict[str, DeviceArray]]:
        """Enqueue the uploads of a picture's inputs in a stream. Earlier work in the stream must not use these buffers.

        Returns:
            All inputs of a step, for each branch.
        """
        dtypes = {spec.name: spec.dtype for spec in contract.inputs}
        shapes = {"latents": inputs.latents.shape, "time_features": inputs.time_features[:1].shape}
        self.latents.upload(stream, stored(inputs.latents, dtypes["latents"]))
        for term in self.terms:  # finite, for a weight of 0
            term.upload(stream, np.zeros_like(inputs.latents))
        shared = {
            "latents": DeviceArray(self.latents.device, shapes["latents"], dtypes["latents"]),
            "time_features": DeviceArray(self.time_features.device, shapes["time_features"], dtypes["time_features"]),
        }
        found = []
        for branch, buffers in zip(inputs.branches, self.fixed, strict=True):
            arrays = dict(shared)
            for name, values in branch.items():
                if isinstance(values, DeviceArray):
                    arrays[name] = values
                else:
                    buffers[name].upload(stream, stored(values, dtypes[name]))
                    arrays[name] = DeviceArray(buffers[name].device, values.shape, dtypes[name])
            found.append(arrays)
        return found
