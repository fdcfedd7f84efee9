"""TensorRT's API as far as the runtime uses it, on the toy networks of `numpy_engines` and a `FakeDriver`.

`tests.support.fake_tensorrt_rtx` adds what TensorRT for RTX alone has.

Which calls exist and what they take is not known from here: mypy checks that against the real bindings' types. This
says what they do, as their documentation has it, and refuses what that calls undefined: shapes outside the profile,
scratch memory that is too small, a graph whose context has changed since it was captured.
"""

from __future__ import annotations

import ctypes
import enum
import json
import weakref
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from qwen_image_engine.engines.core import contract_check
from qwen_image_engine.engines.core.contract import Contract, TensorSpec, split_axis
from qwen_image_engine.engines.core.device_array import size_bytes
from qwen_image_engine.engines.plans.entry import Profile, Shape
from tests.support.fake_cuda import FakeDriver
from tests.support.numpy_engines import Journal, NumpyEngine
from tests.support.toy_graph import toy_graph

VERSION = "11.4.0.106"

_NAMES = {
    "float32": "FLOAT",
    "float16": "HALF",
    "bfloat16": "BF16",
    "float8_e4m3fn": "FP8",
    "int8": "INT8",
    "int64": "INT64",
}
"""Names of `trt.DataType`."""

OUT_OF_MEMORY = "[virtualMemoryBuffer.cpp::resizePhysical::153] Error Code 2: OutOfMemory (Requested size was 8 bytes.)"


def plan_bytes(component: str, stripped: bool = False, weights: Sequence[PlanWeight] = ()) -> bytes:
    """A plan of a component, too long for one read of a small piece."""
    bound = [(weight.name, weight.dtype, weight.shape, weight.mark) for weight in weights]
    return json.dumps({"component": component, "stripped": stripped, "bound": bound}).encode() + b"\n" + bytes(1000)


@dataclass(frozen=True)
class PlanWeight:
    """A weight that is an input of a plan. Outputs are as they should be if its bytes have this `mark`."""

    name: str
    dtype: str
    shape: Shape
    mark: int


def mark(data: bytes) -> int:
    """What bytes are known by, whichever place they have."""
    return zlib.crc32(data)


class Severity(enum.Enum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ILogger:
    Severity = Severity


class SeekPosition(enum.Enum):
    SET, CUR, END = range(3)


class Strategy(enum.Enum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class ProfilingVerbosity(enum.Enum):
    LAYER_NAMES_ONLY, NONE, DETAILED = range(3)


class TensorIOMode(enum.Enum):
    INPUT, OUTPUT = 1, 2


class IStreamReaderV2:
    pass


@dataclass(frozen=True)
class Known:
    """Contents of a plan of a component."""

    contract: Contract
    profiles: Sequence[Profile]
    streamable_bytes: int = 1000


class Context:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.nvtx_verbosity = ProfilingVerbosity.DETAILED  # as built
        self._changes = 0
        self._shapes: dict[str, Shape] = {}
        self._addresses: dict[str, int] = {}
        self._memory = (0, 0)

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._changes += 1
        if self._engine.refuses_profiles:
            self._engine.logger.log(Severity.ERROR, OUT_OF_MEMORY)
            raise RuntimeError("Error in set optimization profile async.")  # where C++ gives False
        self._profile, self._shapes = self._engine.known.profiles[profile_index], {}
        return True

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        self._changes += 1
        least, _, largest = self._profile.shapes[name]
        self._shapes[name] = shape
        return all(low <= size <= high for low, size, high in zip(least, shape, largest, strict=True))

    def update_device_memory_size_for_shapes(self) -> int:
        self._changes += 1
        return 8 * sum(map(prod, self._shapes.values()))

    def infer_shapes(self) -> list[str]:
        return [spec.name for spec in self._engine.inputs if spec.name not in self._shapes]

    def set_device_memory(self, memory: int, size: int) -> None:
        self._changes += 1
        if size < max(1, 8 * sum(map(prod, self._shapes.values()))):
            self._engine.logger.log(Severity.ERROR, "setDeviceMemoryV2: Error Code 3: API Usage Error")
            return  # what it had before stays
        self._memory = memory, size

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._changes += 1
        self._addresses[name] = memory
        return True

    def get_tensor_shape(self, name: str) -> Shape:
        if name in self._shapes:
            return self._shapes[name]
        inputs = {spec.name: np.zeros(self._shapes[spec.name], spec.dtype) for spec in self._engine.inputs}
        sizes = contract_check.check_inputs(self._engine.known.contract, inputs)
        (spec,) = (spec for spec in self._engine.outputs if spec.name == name)
        return tuple(axis if isinstance(axis, int) else _size(axis, sizes) for axis in spec.shape)

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle == 0x57
        assert self._memory[1] >= 8 * sum(map(prod, self._shapes.values()))
        driver, changes, addresses = self._engine.driver, self._changes, dict(self._addresses)
        driver.view(*self._memory)

        def work() -> None:
            assert changes == self._changes, "a graph of a context that has changed since"
            driver.view(*self._memory)[:] = 0x55
            inputs = {}
            for spec in self._engine.inputs:
                shape = self._shapes[spec.name]
                held = driver.view(addresses[spec.name], 4 * prod(shape) * (2 if spec.dtype == "int64" else 1))
                inputs[spec.name] = held.view(spec.dtype).reshape(shape).copy()
            found = NumpyEngine(self._engine.known.contract.component, Journal()).outputs(inputs)
            for weight in self._engine.weights:
                address, nbytes = addresses[weight.name], size_bytes(weight.shape, weight.dtype)
                assert address % 256 == 0
                if mark(driver.view(address, nbytes).tobytes()) != weight.mark:
                    found = [values + 1 for values in found]
            for spec, values in zip(self._engine.outputs, found, strict=True):
                rows = np.ascontiguousarray(values, spec.dtype)
                driver.view(addresses[spec.name], rows.nbytes)[:] = rows.reshape(-1).view(np.uint8)

        driver.put(work)
        return True


class Engine:
    refuses_profiles = False

    def __init__(
        self, known: Known, driver: FakeDriver, stripped: bool, logger: Any, weights: Sequence[PlanWeight] = ()
    ) -> None:
        self.known, self.driver, self.stripped, self.logger = known, driver, stripped, logger
        self.weights = weights
        self._contexts: weakref.WeakSet[Context] = weakref.WeakSet()
        self.inputs, self.outputs = known.contract.inputs, known.contract.outputs
        self.num_optimization_profiles = len(known.profiles)
        bound = (TensorSpec(weight.name, weight.shape, weight.dtype, "") for weight in weights)
        self._ports = (*self.inputs, *bound, *self.outputs)
        self.num_io_tensors = len(self._ports)
        self.streamable_weights_size = self._budget = known.streamable_bytes

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return 1 << 16

    def get_weight_streaming_automatic_budget(self) -> int:
        return ctypes.c_int32(self.driver.free_bytes - (1 << 16)).value  # as pyCore.cpp has it

    @property
    def weight_streaming_budget_v2(self) -> int:
        return self._budget

    @weight_streaming_budget_v2.setter
    def weight_streaming_budget_v2(self, budget: int) -> None:
        if budget >= 0 and not self._contexts:  # else it is refused, in silence
            self._budget = budget

    def is_shape_inference_io(self, name: str) -> bool:
        return False

    def get_tensor_name(self, index: int) -> str:
        return self._ports[index].name

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=_NAMES[self._spec(name).dtype])

    def get_tensor_shape(self, name: str) -> Shape:
        return tuple(-1 if isinstance(axis, str) else axis for axis in self._spec(name).shape)

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.OUTPUT if self._spec(name) in self.outputs else TensorIOMode.INPUT

    def create_execution_context(self, strategy: Any) -> Context:
        assert strategy == Strategy.USER_MANAGED
        assert not self.stripped
        context = Context(self)
        self._contexts.add(context)
        return context

    def _spec(self, name: str) -> TensorSpec:
        (spec,) = (spec for spec in self._ports if spec.name == name)
        return spec


def fake_tensorrt(known: dict[str, Known], driver: FakeDriver) -> ModuleType:
    """The module `tensorrt`, whose plans are those of `known`, by component."""

    class Runtime:
        engine_host_code_allowed = True

        def __init__(self, logger: Any) -> None:
            self._logger = logger

        def deserialize_cuda_engine(self, reader: Any) -> Engine | None:
            assert not self.engine_host_code_allowed
            assert driver.depth > 0, "no current context"
            reader.seek(0, SeekPosition.SET)
            data = b"".join(iter(lambda: reader.read(100, 0), b""))
            try:
                plan = json.loads(data.partition(b"\n")[0])
            except ValueError:
                self._logger.log(Severity.WARNING, "a warning")
                self._logger.log(Severity.ERROR, "Serialization assertion\n failed")
                return None
            weights = [PlanWeight(name, dtype, tuple(shape), mark) for name, dtype, shape, mark in plan["bound"]]
            return Engine(known[plan["component"]], driver, plan["stripped"], self._logger, weights)

    class Refitter:
        def __init__(self, engine: Engine, logger: Any) -> None:
            self._engine = engine
            self.weights = False

        def refit_cuda_engine(self) -> bool:
            self._engine.stripped = not self.weights
            return self.weights

        def get_missing_weights(self) -> list[str]:
            return [] if self.weights else ["proj_out.weight"]

    class OnnxParserRefitter:
        num_errors = 0

        def __init__(self, refitter: Refitter, logger: Any) -> None:
            self._refitter = refitter

        def refit_from_file(self, model: str) -> bool:
            self._refitter.weights = Path(model).read_bytes() == toy_graph(Path(model).stem)
            return True

    module: Any = ModuleType("tensorrt")
    contents = {
        "__version__": VERSION,
        "ILogger": ILogger,
        "IStreamReaderV2": IStreamReaderV2,
        "SeekPosition": SeekPosition,
        "ExecutionContextAllocationStrategy": Strategy,
        "TensorIOMode": TensorIOMode,
        "Runtime": Runtime,
        "Refitter": Refitter,
        "OnnxParserRefitter": OnnxParserRefitter,
        "ProfilingVerbosity": ProfilingVerbosity,
        "ICudaEngine": Engine,
        "IExecutionContext": Context,
        "Dims": tuple,
    }
    vars(module).update(contents)
    return module


def _size(axis: str, sizes: dict[str, int]) -> int:
    return sum(factor * sizes[name] for factor, name in map(split_axis, axis.split("+")))
