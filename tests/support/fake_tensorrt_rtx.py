"""What TensorRT for RTX has beside the played API of `fake_tensorrt_runtime`: validity, a JIT with a cache, its graphs.

A kernel is a line of text here, compiled for a component, a profile and, if specialised, for shapes. `compiled` counts
compilations, in which no kernel of the cache is one.
"""

from __future__ import annotations

import enum
from collections import Counter
from types import ModuleType
from typing import Any

from tests.support.fake_cuda import FakeDriver
from tests.support.fake_tensorrt_runtime import Context, Engine, Known, Severity, Strategy, fake_tensorrt

RTX_VERSION = "1.7.1.116"

_HEAD = b"kernels of A GPU\n"


class EngineValidity(enum.Enum):
    VALID, SUBOPTIMAL, INVALID = range(3)


class EngineInvalidityDiagnostics(enum.IntEnum):
    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2
    OLD_CUDA_DRIVER = 4
    OLD_CUDA_RUNTIME = 8
    INSUFFICIENT_GPU_MEMORY = 16
    MALFORMED_ENGINE = 32
    CUDA_ERROR = 64


class CudaGraphStrategy(enum.Enum):
    DISABLED, WHOLE_GRAPH_CAPTURE = range(2)


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    LAZY, EAGER, NONE = range(3)


class HostMemory(bytes):
    @property
    def nbytes(self) -> int:
        return len(self)


class IRuntimeCache:
    def __init__(self, driver: FakeDriver) -> None:
        self._driver = driver
        self.kernels: set[bytes] = set()

    def deserialize(self, blob: bytes) -> bool:
        assert self._driver.depth > 0, "no current context"
        if blob.startswith(_HEAD) and blob.endswith(b"\n"):
            self.kernels |= set(blob[len(_HEAD) :].splitlines())
            return True
        return False

    def serialize(self) -> HostMemory | None:
        return HostMemory(_HEAD + b"".join(line + b"\n" for line in sorted(self.kernels)))


class IRuntimeConfig:
    """Settings of contexts; `made` are all of a process."""

    made: list[IRuntimeConfig] = []  # noqa: RUF012

    def __init__(self, driver: FakeDriver) -> None:
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
        self.dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY
        self.allocation = Strategy.STATIC
        self.cache: IRuntimeCache | None = None
        self._driver = driver
        self.made.append(self)

    def set_execution_context_allocation_strategy(self, strategy: Strategy) -> None:
        self.allocation = strategy

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache(self._driver)

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self.cache = cache
        return True


def fake_tensorrt_rtx(known: dict[str, Known], driver: FakeDriver) -> ModuleType:
    """The module `tensorrt_rtx`, whose plans are those of `known`.

    Its `validity` is what is said of every plan: a member of `EngineValidity`, and bits. `compiled` are the kernels
    that the JIT compiled.
    """
    module: Any = fake_tensorrt(known, driver)

    class RtxContext(Context):
        def execute_async_v3(self, stream_handle: int) -> bool:
            assert driver.captured is None, "captured from outside"
            return super().execute_async_v3(stream_handle)

    class RtxEngine(Engine):
        def create_runtime_config(self) -> IRuntimeConfig:
            return IRuntimeConfig(driver)

        def create_execution_context(self, strategy: Any) -> Context:
            assert isinstance(strategy, IRuntimeConfig)
            assert strategy.allocation == Strategy.USER_MANAGED
            assert strategy.cache is not None
            assert driver.depth > 0, "no current context"
            kernel = f"{self.known.contract.component} {strategy.dynamic_shapes_kernel_specialization_strategy.name}"
            if kernel.encode() not in strategy.cache.kernels:
                module.compiled[kernel] += 1
                strategy.cache.kernels.add(kernel.encode())
            context = RtxContext(self)
            self._contexts.add(context)
            return context

    class Runtime(module.Runtime):  # type: ignore[misc]
        engine_host_code_allowed = False
        engine_header_size = 64

        def get_engine_validity(self, buffer: bytes) -> tuple[EngineValidity, int]:
            assert driver.depth > 0, "no current context"
            assert len(buffer) == self.engine_header_size
            if not buffer.startswith(b"{"):
                return EngineValidity.INVALID, int(EngineInvalidityDiagnostics.MALFORMED_ENGINE)
            if module.validity[0] == EngineValidity.INVALID and not module.validity[1]:
                self._logger.log(Severity.INTERNAL_ERROR, "cudaError 35")
            return module.validity

        def deserialize_cuda_engine(self, reader: Any) -> Engine | None:
            found = super().deserialize_cuda_engine(reader)
            if found is not None:
                found.__class__ = RtxEngine
            return found

    contents = {
        "__version__": RTX_VERSION,
        "Runtime": Runtime,
        "ICudaEngine": RtxEngine,
        "IExecutionContext": RtxContext,
        "IRuntimeConfig": IRuntimeConfig,
        "IRuntimeCache": IRuntimeCache,
        "EngineValidity": EngineValidity,
        "EngineInvalidityDiagnostics": EngineInvalidityDiagnostics,
        "CudaGraphStrategy": CudaGraphStrategy,
        "DynamicShapesKernelSpecializationStrategy": DynamicShapesKernelSpecializationStrategy,
        "validity": (EngineValidity.VALID, 0),
        "compiled": Counter(),
    }
    vars(module).update(contents)
    module.__name__ = "tensorrt_rtx"
    return module
