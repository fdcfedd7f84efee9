"""An execution context with its own buffers: uploads the inputs, runs or replays the network, downloads the outputs.

It has not run on a GPU yet. Every call is checked against the types of the bindings of both products.
"""

from collections.abc import Callable, Mapping

import numpy as np

from qwen_image_engine.engines.core import errors
from qwen_image_engine.engines.core.contract import Contract, TensorSpec
from qwen_image_engine.engines.core.device_array import DeviceArray, Values, size_bytes, stored
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.cuda.buffer import DeviceBuffer
from qwen_image_engine.engines.cuda.memory import CudaMemory
from qwen_image_engine.engines.cuda.stream import CudaGraph
from qwen_image_engine.engines.plans.entry import Shape
from qwen_image_engine.engines.tensorrt.bindings import PRODUCT, trt
from qwen_image_engine.engines.tensorrt.cuda_graph import Replay
from qwen_image_engine.engines.tensorrt.session import TensorRtSession


def axes(shape: trt.Dims) -> Shape:
    """Return the sizes of a shape as a tuple; -1 stands for an unknown size."""
    return tuple(shape[index] for index in range(len(shape)))


class TensorRtCall:
    """An execution context. `run` with the same shapes and addresses as before allocates nothing on the device.

    A context that a CUDA graph was captured from must not serve another shape, so the engine keeps one context for each
    graph that it replays. Activations are in the session's scratch buffer, which every context is given in turn.
    """

    def __init__(
        self,
        session: TensorRtSession,
        engine: trt.ICudaEngine,
        context: trt.IExecutionContext,
        contract: Contract,
        weights: Mapping[str, DeviceArray],
        streams: bool,
        not_captured: Callable[[QwenImageError], None],
    ) -> None:
        """Take an execution context, which nothing else uses.

        Args:
            session: runtime, stream and scratch buffer that all contexts share.
            engine: the engine that the context was created from.
            context: the context, to which no memory was given yet.
            contract: contract of the engine's component.
            weights: weights that are inputs of the plan, bound once and for all runs. The caller must hold them.
            streams: whether some weights come from the host in every run.
            not_captured: called with the error if a run cannot be captured as a CUDA graph; the run is then launched
                directly.

        Raises:
            QwenImageError: TensorRT does not take the address of a weight.
        """
        self._session, self._engine, self._contract = session, engine, contract
        # Ranges for profilers, in the verbosity that the engine was built with for its inspector, would cost every run.
        context.nvtx_verbosity = trt.ProfilingVerbosity.NONE
        self._context = context
        self._streams, self._not_captured = streams, not_captured
        self._profile: int | None = None
        self._shapes: dict[str, Shape] = {}
        self._scratch: tuple[int, int] = (0, 0)  # address and bytes
        self._scratch_bytes = 0
        self._addresses: dict[str, int] = {}
        self._buffers: dict[str, DeviceBuffer] = {}
        self._replay = Replay()
        self._graph: CudaGraph | None = None
        self._pending = False
        for name, array in weights.items():  # graphs hold these addresses too
            self._done(context.set_tensor_address(name, array.address), f"takes no address for {name}")

    def run(self, profile: int, inputs: Mapping[str, Values], graphs: bool) -> dict[str, Values]:
        """Run the network and return the outputs by name.

        Keys and values are in new memory on the device, all other outputs on the host. The host waits once, at the end.

        Args:
            profile: index of the optimization profile that holds the shapes.
            inputs: arrays by name, checked.
            graphs: whether repeated calls are replayed as CUDA graphs.

        Raises:
            QwenImageError: TensorRT or the driver returns an error.
            OutOfDeviceMemory: the device has no room for scratch memory, buffers, keys or values.
        """
        try:
            self._settle()
            kept, shapes = self._prepare(profile, inputs, {})
            self._pending = True
            self._upload(inputs)
            self._execute(graphs)
            return self._download(kept, shapes)
        except BaseException:
            self._replay.forget()
            raise

    def enqueue(
        self, profile: int, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray], graphs: bool
    ) -> None:
        """Enqueue a run from the device to the device in the session's stream, without waiting; raises as `run` does.

        The call waits for earlier work only if the context has to change.

        Args:
            profile: index of the optimization profile that holds the shapes.
            inputs: arrays by name, checked. The caller must hold them until the run is done.
            outputs: array for each output, by name, checked. The caller must hold them until the run is done.
            graphs: whether repeated calls are replayed as CUDA graphs.
        """
        try:
            self._prepare(profile, inputs, outputs)
            self._pending = True
            self._execute(graphs)
        except BaseException:
            self._replay.forget()
            raise

    def _settle(self) -> None:
        """Wait for enqueued work of this context, before the context changes or its buffers are filled again."""
        if self._pending:
            self._session.stream.synchronise()
            self._pending = False

    def _prepare(
        self, profile: int, inputs: Mapping[str, Values], outputs: Mapping[str, DeviceArray]
    ) -> tuple[dict[str, DeviceArray], dict[str, Shape]]:
        """Set shapes, scratch memory and addresses of the context if they differ from the call before.

        Returns:
            New arrays for the keys and values, and the shapes of the other outputs that have no array in `outputs`.
        """
        self._session.log.clear()
        self._set_shapes(profile, {name: tuple(values.shape) for name, values in inputs.items()})
        if self._scratch_bytes > self._session.scratch.nbytes:
            self._session.stream.synchronise()  # it moves, and another context may be at work in it
        scratch = (self._session.scratch.address(self._engine, self._scratch_bytes), self._scratch_bytes)
        if scratch != self._scratch:
            self._settle()
            self._scratch = (0, 0)
            self._session.log.clear()
            self._context.set_device_memory(*scratch)
            # It gives nothing back, and a context that was refused runs on in memory that it had before.
            self._done(not self._session.log.failed, f"does not take {scratch[1]} bytes of scratch memory")
            self._scratch = scratch
        kept: dict[str, DeviceArray] = {}
        shapes: dict[str, Shape] = {}
        addresses: dict[str, int] = {}
        for spec in self._contract.inputs:
            values = inputs[spec.name]
            found = values if isinstance(values, DeviceArray) else self._buffer(spec, tuple(values.shape)).device
            addresses[spec.name] = found.address
        for spec in self._contract.outputs:
            shape = axes(self._context.get_tensor_shape(spec.name))
            given = outputs.get(spec.name)
            self._done(
                min(shape, default=0) >= 0 and (given is None or given.shape == shape), f"gives {spec.name} as {shape}"
            )
            if spec.name in outputs:
                addresses[spec.name] = outputs[spec.name].address
            elif spec.is_cache:
                memory = CudaMemory(self._session.context, size_bytes(shape, spec.dtype))
                kept[spec.name] = DeviceArray(memory, shape, spec.dtype)
                addresses[spec.name] = kept[spec.name].address
            else:
                shapes[spec.name] = shape
                addresses[spec.name] = self._buffer(spec, shape).device.address
        if addresses == self._addresses:
            return kept, shapes
        self._settle()
        held, self._addresses = self._addresses, {}  # neither holds until all of it is set
        for name, address in addresses.items():
            if held.get(name) != address:
                self._done(self._context.set_tensor_address(name, address), f"takes no address for {name}")
        self._addresses = addresses
        return kept, shapes

    def _set_shapes(self, profile: int, shapes: dict[str, Shape]) -> None:
        if (profile, shapes) == (self._profile, self._shapes):
            return
        self._settle()
        held, self._profile, self._shapes = self._profile, None, {}  # neither holds until all of it is set
        if profile != held:
            self._choose(profile)
        for name, shape in shapes.items():
            self._done(self._context.set_input_shape(name, shape), f"does not take {name} {shape}")
        self._infer()
        needed = self._context.update_device_memory_size_for_shapes()
        self._done(needed > 0 or not self._session.log.failed, f"does not tell the scratch memory of {shapes}")
        # A context that needs scratch for some shape does not run without any.
        self._scratch_bytes = max(needed, 1)
        if self._streams:  # of the profile's size alone it is said that room for weights on their way is in it
            most = self._engine.get_device_memory_size_for_profile_v2(profile)
            self._scratch_bytes = max(self._scratch_bytes, most)
        self._scratch = (0, 0)
        self._profile, self._shapes = profile, shapes

    def _infer(self) -> None:
        try:
            unknown = self._context.infer_shapes()
        except RuntimeError as error:  # a code, without what TensorRT logged
            raise QwenImageError(f"{PRODUCT.text} infers no shapes: {self._session.log.errors()} ({error})") from error
        self._done(not unknown, f"does not know the shapes of {', '.join(unknown)}")

    def _choose(self, profile: int) -> None:
        try:
            done = self._context.set_optimization_profile_async(profile, self._session.stream.handle)
        except RuntimeError:  # so the bindings say False, without what TensorRT logged
            done = False
        self._done(done, f"does not take profile {profile}")

    def _upload(self, inputs: Mapping[str, Values]) -> None:
        for spec in self._contract.inputs:
            values = inputs[spec.name]
            if not isinstance(values, DeviceArray):
                self._buffers[spec.name].upload(self._session.stream, stored(values, spec.dtype))

    def _execute(self, graphs: bool) -> None:
        held = (self._profile, *self._shapes.items(), *self._addresses.items(), self._scratch)
        action = self._replay.next(held) if graphs else "run"
        if action == "run" or (action == "capture" and not self._capture()):
            self._graph = None
            self._enqueue()
            if action == "capture":
                self._session.stream.synchronise()  # the engine lets this context go
            return
        assert self._graph is not None
        self._graph.launch()

    def _capture(self) -> bool:
        """Capture this run as a CUDA graph and return whether that worked. Raise if memory ran out meanwhile."""
        try:
            self._graph = self._session.stream.capture(self._enqueue)
        except QwenImageError as error:
            if errors.is_memory(error):
                raise
            self._not_captured(error)
            return False
        return True

    def _enqueue(self) -> None:
        self._session.log.clear()
        self._done(self._context.execute_async_v3(self._session.stream.handle), "does not run")

    def _download(self, kept: Mapping[str, DeviceArray], shapes: Mapping[str, Shape]) -> dict[str, Values]:
        arrays = {
            spec.name: np.empty(shapes[spec.name], spec.dtype) for spec in self._contract.outputs if not spec.is_cache
        }
        for name, array in arrays.items():
            self._buffers[name].download(self._session.stream, array.nbytes)
        self._session.stream.synchronise()
        self._pending = False
        for name, array in arrays.items():
            self._buffers[name].read(array)
        return {spec.name: kept[spec.name] if spec.is_cache else arrays[spec.name] for spec in self._contract.outputs}

    def _buffer(self, spec: TensorSpec, shape: Shape) -> DeviceBuffer:
        """Return the buffer of a tensor, allocated again if it is too small for `shape`."""
        nbytes = size_bytes(shape, spec.dtype)
        found = self._buffers.get(spec.name)
        if found is None or found.nbytes < nbytes:
            self._buffers.pop(spec.name, None)
            found = self._buffers[spec.name] = DeviceBuffer(self._session.context, nbytes)
        return found

    def _done(self, done: bool, what: str) -> None:
        if not done:
            raise QwenImageError(f"{PRODUCT.text} {what}: {self._session.log.errors()}")
