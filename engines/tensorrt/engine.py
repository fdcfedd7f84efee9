"""The engine of TensorRT 11, or of TensorRT for RTX, on the first CUDA device, from plans that `qwen-image build` made.

It has not run on a GPU yet. Every call is checked against the types of the bindings of both products.
"""

import warnings
import weakref
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from typing import TypeVar

from qwen_image_engine.engines.core import contract_check, errors
from qwen_image_engine.engines.core.components import EVERY_STEP
from qwen_image_engine.engines.core.contract import Contract, describe_shape
from qwen_image_engine.engines.core.device_array import DeviceArray, Values
from qwen_image_engine.engines.core.errors import OutOfDeviceMemory, QwenImageError
from qwen_image_engine.engines.core.loop import LoopInputs
from qwen_image_engine.engines.core.lru_cache import LruCache
from qwen_image_engine.engines.core.packages import newer_than_supported
from qwen_image_engine.engines.cuda.solver_kernel import SolverKernel
from qwen_image_engine.engines.plans.entry import Shape
from qwen_image_engine.engines.plans.profile_choice import choose_profile
from qwen_image_engine.engines.tensorrt.bindings import PRODUCT, made, trt
from qwen_image_engine.engines.tensorrt.bound_weights import check_room, weight_parts, without_weights
from qwen_image_engine.engines.tensorrt.device_latents import DeviceLatents
from qwen_image_engine.engines.tensorrt.execution import TensorRtCall
from qwen_image_engine.engines.tensorrt.load import PlanSource, ports, read_plan, streams
from qwen_image_engine.engines.tensorrt.loop import TensorRtLoop
from qwen_image_engine.engines.tensorrt.package import TENSORRT_RTX
from qwen_image_engine.engines.tensorrt.rtx import JitContexts
from qwen_image_engine.engines.tensorrt.session import TensorRtSession

_CALLS = 4
"""Limit of cached contexts with CUDA graphs: both branches of guidance, of this picture and of the one before."""

_PLACES = 2
"""Sizes of pictures whose latents keep their place on the device, for the graphs that hold its addresses."""

_Result = TypeVar("_Result")


class TensorRtEngine:
    """A plan loaded in TensorRT, with the weights that it takes as inputs.

    Keys and values stay on the device. All other inputs and outputs of `run` are on the host.

    Engines of a session run one at a time: they share its stream and its scratch buffer.
    """

    def __init__(self, session: TensorRtSession, source: PlanSource, contract: Contract) -> None:
        """Load a plan whose checksum and fit to this machine were checked before.

        Raises:
            OutOfDeviceMemory: the device has no room for the weights.
            QwenImageError: TensorRT refuses the plan, or the plan does not match the contract and the list of weights
                that it takes as inputs; or a file of these weights is missing or changed.
        """
        parts = weight_parts(source)
        check_room(session, contract.component, source, parts)
        engine = read_plan(session, contract.component, source)
        inputs, outputs = ports(engine)
        contract_check.check_graph(contract, source.path, without_weights(contract, source, inputs), outputs)
        self._session, self._source, self._contract = session, source, contract
        self._engine: trt.ICudaEngine | None = engine
        # Of enqueueV3 the header says that where weights are streamed it waits and cannot be captured.
        self._streams = source.may_stream and streams(engine)
        # What repeats with the same shapes is replayed as a CUDA graph: by TensorRT for RTX itself, as `JitContexts`
        # says, or by a capture here, which holds addresses too.
        self._repeats = contract.component in EVERY_STEP and not self._streams
        self._jit: JitContexts | None = None
        if PRODUCT == TENSORRT_RTX:
            component, chosen = contract.component, source.specialization
            self._jit = JitContexts(session, engine, component, source.path, chosen, self._repeats)
        self._graphs = self._repeats and self._jit is None
        self._calls: LruCache[Hashable, TensorRtCall] = LruCache(_CALLS if self._repeats else 1)
        self._latents: LruCache[Hashable, DeviceLatents] = LruCache(_PLACES)
        self._kernel: SolverKernel | None = None
        self._loop: weakref.ref[TensorRtLoop] | None = None
        self._weights = session.weights.take(parts)

    @property
    def contract(self) -> Contract:
        """Tensors that `run` takes and returns."""
        return self._contract

    def run(self, inputs: Mapping[str, Values]) -> dict[str, Values]:
        """Run the component and return the outputs by name.

        Raises:
            OutOfDeviceMemory: the device has no room for activations of this size.
            QwenImageError: the inputs do not match the contract, no profile holds their shapes, the run failed, or the
                engine is closed.
        """
        sizes = contract_check.check_inputs(self._contract, inputs)
        outputs = self._use(inputs, {}, sizes, lambda call, profile: call.run(profile, inputs, self._graphs))
        contract_check.check_outputs(self._contract, outputs, sizes)
        return outputs

    def enqueue(self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray]) -> None:
        """Enqueue a run in the session's stream, without waiting; raises as `run` does.

        Args:
            inputs: arrays by name, on the device. The caller must hold them until the run is done.
            outputs: array for each output, by name, on the device. The caller must hold them until the run is done.
        """
        sizes = contract_check.check_inputs(self._contract, inputs)
        contract_check.check_outputs(self._contract, outputs, sizes)
        self._use(inputs, outputs, sizes, lambda call, profile: call.enqueue(profile, inputs, outputs, self._graphs))

    def loop(self, inputs: LoopInputs) -> TensorRtLoop:
        """Return the sampler's steps on the device; raises as `LoopingEngine.loop` does."""
        if self._engine is None:
            raise errors.closed(self._contract.component)
        for branch in inputs.branches:
            first = {"latents": inputs.latents, "time_features": inputs.time_features[:1], **branch}
            contract_check.check_inputs(self._contract, first)
            self._profile(_shapes(first))
        self._kernel = self._kernel or SolverKernel(self._session.context)
        on_host = (
            (name, values.shape)
            for branch in inputs.branches
            for name, values in branch.items()
            if not isinstance(values, DeviceArray)
        )
        key = inputs.latents.shape, len(inputs.branches), *on_host
        place = self._latents.get_or_make(
            key, lambda: DeviceLatents.like(self._session.context, self._contract, inputs)
        )
        earlier = self._loop() if self._loop is not None else None
        if earlier is not None:
            earlier.superseded = True  # its latents may be where those of the next loop go
        loop = TensorRtLoop(self._session.stream, self._kernel, place, self._contract, inputs, self.enqueue)
        self._loop = weakref.ref(loop)  # the loop holds the engine
        return loop

    def bind(self, name: str, array: DeviceArray) -> None:
        """Bind another array on the device to a weight that the plan takes as an input, instead of the file's.

        Other engines keep theirs. Contexts and CUDA graphs, which hold addresses, are made again.

        Raises:
            QwenImageError: the engine is closed, or the plan takes no weight of this name, dtype and shape.
        """
        if self._engine is None:
            raise errors.closed(self._contract.component)
        known = {weight.name: (weight.dtype, weight.shape) for weight in self._source.entry.bound}
        if known.get(name) != (array.dtype, array.shape):
            raise QwenImageError(
                f"{self._contract.component}: {array.dtype} {describe_shape(array.shape)} cannot be bound to {name}, "
                f"expected {' '.join(map(str, known.get(name, ('a weight that the plan takes as an input',))))}"
            )
        self._session.stream.synchronise()  # contexts that go may be at work
        self._calls.clear()
        self._weights[name] = array

    def _use(
        self,
        inputs: Mapping[str, Values],
        outputs: Mapping[str, DeviceArray],
        sizes: dict[str, int],
        use: Callable[[TensorRtCall, int], _Result],
    ) -> _Result:
        """Call `use` with the context and the profile for a call, and return its result. Errors name the call."""
        engine = self._engine
        if engine is None:
            raise errors.closed(self._contract.component)
        shapes = _shapes(inputs)
        profile = self._profile(shapes)
        # A context that is not captured serves any shape.
        key: Hashable = (profile, *shapes.items()) if self._repeats else None
        if self._graphs:
            key = (key, *_addresses(inputs), *_addresses(outputs))
        try:
            return use(self._calls.get_or_make(key, lambda: self._call(engine)), profile)
        except (QwenImageError, RuntimeError) as error:
            if not errors.is_memory(error):
                newer = newer_than_supported(trt)
                raise errors.run_failure(self._contract.component, sizes, PRODUCT.text, error, newer=newer) from error
            with suppress(QwenImageError):  # what is on its way uses them
                self._session.stream.synchronise()
            self._calls.clear()
            name, words = self._source.entry.profiles[profile].name, errors.one_line(error)
            raise OutOfDeviceMemory(f"{self._contract.component}, profile {name}: {words}") from error

    def close(self) -> None:
        """Free the contexts, the weights, and the scratch buffer if no other engine uses it; see `Engine.close`."""
        if self._engine is not None:
            with suppress(QwenImageError):  # nothing is on its way, unless a run was interrupted
                self._session.stream.synchronise()
            if self._jit is not None:
                self._jit.keep()
            self._calls.clear()
            self._jit = None
            self._latents.clear()
            self._session.scratch.release(self._engine)
            self._engine = None
            self._weights.clear()  # what another engine holds stays on the device

    def _profile(self, shapes: Mapping[str, Shape]) -> int:
        """Return the index of the optimization profile that serves a call; raises as `choose_profile` does."""
        return choose_profile(self._contract, self._source.entry.profiles, shapes, self._source.rebuild)

    def _call(self, engine: trt.ICudaEngine) -> TensorRtCall:
        context = self._context(engine)
        return TensorRtCall(
            self._session, engine, context, self._contract, self._weights, self._streams, self._without_graphs
        )

    def _context(self, engine: trt.ICudaEngine) -> trt.IExecutionContext:
        """Return a new execution context, without memory for activations."""
        if self._jit is not None:
            return self._jit.make()
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        return made("execution context", self._session.log, lambda: engine.create_execution_context(strategy))

    def _without_graphs(self, error: QwenImageError) -> None:
        """Switch CUDA graphs off from now on. Runs are slower and give the same picture."""
        self._session.stream.synchronise()  # contexts that go may be at work
        self._graphs, self._repeats, self._calls = False, False, LruCache(1)
        warnings.warn(
            f"{self._contract.component}: its runs cannot become CUDA graphs, so each is launched kernel by kernel "
            f"({errors.one_line(error)})",
            RuntimeWarning,
            stacklevel=2,
        )


def _shapes(inputs: Mapping[str, Values]) -> dict[str, Shape]:
    return {name: tuple(values.shape) for name, values in inputs.items()}


def _addresses(inputs: Mapping[str, Values]) -> list[int]:
    return [values.address for values in inputs.values() if isinstance(values, DeviceArray)]
