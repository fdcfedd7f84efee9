"""The part of TensorRT for RTX's API that TensorRT does not have: validity of a plan, the JIT, compute capabilities.

A plan is compiled ahead of time for compute capabilities; the JIT compiles its kernels for the card when an execution
context is created, and kernels for single shapes when calls have those shapes.

It has not run on such a card yet. Every call is checked against the types of TensorRT for RTX 1.7's own bindings.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from qwen_image_engine.engines.core.errors import OutOfDeviceMemory, QwenImageError, one_line
from qwen_image_engine.engines.cuda.driver import version_text
from qwen_image_engine.engines.tensorrt.bindings import PRODUCT, Log, made
from qwen_image_engine.engines.tensorrt.jit_cache import MOST_BYTES, jit_cache_path, read_kernels, write_kernels
from qwen_image_engine.engines.tensorrt.package import KernelSpecialization
from qwen_image_engine.engines.tensorrt.session import TensorRtSession

if TYPE_CHECKING:
    import tensorrt_rtx as trt
else:
    from qwen_image_engine.engines.tensorrt.bindings import trt


def check_validity(session: TensorRtSession, component: str, path: Path, rebuild: str) -> None:
    """Ask TensorRT for RTX whether it can run the plan in a file on this machine. Only the plan's header is read.

    A plan that may be slow here gives a warning. `rebuild` is the command that builds another plan.

    Raises:
        OutOfDeviceMemory: the device has not enough memory.
        QwenImageError: the plan does not run on this machine.
        OSError: the file cannot be read.
    """
    runtime: trt.Runtime = session.runtime
    with path.open("rb") as file:
        header = file.read(runtime.engine_header_size)
    session.log.clear()
    with session.context.current():
        validity, faults = runtime.get_engine_validity(header)
    if validity == trt.EngineValidity.SUBOPTIMAL:
        warnings.warn(
            f"{component}: {PRODUCT.text} says that {path} may be slow on {session.device.name}; build it for this "
            f"GPU alone with: {rebuild}",
            RuntimeWarning,
            stacklevel=2,
        )
    if validity == trt.EngineValidity.INVALID:
        raise _invalid(session, component, path, faults, rebuild)


def _invalid(session: TensorRtSession, component: str, path: Path, faults: int, rebuild: str) -> QwenImageError:
    """Return the error for a plan whose header TensorRT for RTX refuses with these bits."""
    kinds, device = trt.EngineInvalidityDiagnostics, session.device
    build = f"build it again with: {rebuild}"
    rows = (
        (kinds.MALFORMED_ENGINE, "it is no engine file or is damaged", build),
        (kinds.VERSION_MISMATCH, f"it was built by another version than {session.version}", build),
        (kinds.UNSUPPORTED_CC, f"it was not built for {device.name} ({device.compute_capability})", build),
        (
            kinds.OLD_CUDA_DRIVER,
            f"it needs a newer driver than this one, which serves CUDA {version_text(device.driver)}",
            "install NVIDIA's newest driver",
        ),
        (
            kinds.OLD_CUDA_RUNTIME,
            "it needs a newer CUDA runtime",
            f"install it again with: pip install 'qwen-image-engine[{PRODUCT.engine}]'",
        ),
        (
            kinds.INSUFFICIENT_GPU_MEMORY,
            f"the memory of {device.name} does not suffice",
            "run with --memory sequential, or export with --precision fp8 or int8",
        ),
        (kinds.CUDA_ERROR, "CUDA does not work", "see whether nvidia-smi lists the GPU"),
    )
    found = [(words, mend) for kind, words, mend in rows if faults & int(kind)]
    reasons = ", and ".join(words for words, _ in found) or session.log.errors()
    text = f"{component}: {PRODUCT.text} cannot use {path}: {reasons}; {found[0][1] if found else build}"
    only_memory = faults == int(kinds.INSUFFICIENT_GPU_MEMORY)
    return OutOfDeviceMemory(text) if only_memory else QwenImageError(text)


class JitContexts:
    """The execution contexts of an engine of TensorRT for RTX, and the kernels that the JIT compiles for them.

    The kernels of earlier processes are read from the file of `jit_cache_path`. A file that cannot be used is replaced,
    and a folder that cannot be written costs the compilation in each process; neither stops a picture.

    CUDA graphs are captured by TensorRT for RTX. A capture of ours would keep whichever kernels served the captured
    run: NVIDIA's "Working with RTX CUDA Graphs" says that for dynamic shapes those are fallback kernels until kernels
    for the shape are compiled, which makes the right moment hard to tell from outside. `WHOLE_GRAPH_CAPTURE` captures
    once the latter are there. A capture from outside also needs plans built with `REQUIRE_USER_ALLOCATION` (release
    notes of 1.2).
    """

    def __init__(
        self,
        session: TensorRtSession,
        engine: "trt.ICudaEngine",
        component: str,
        plan: Path,
        specialization: KernelSpecialization | None,
        graphs: bool,
    ) -> None:
        """Configure the contexts of an engine.

        Args:
            session: runtime and device.
            engine: the engine that the contexts are created from.
            component: name of the component, for messages.
            plan: path of the engine's plan.
            specialization: when kernels for single shapes are compiled; None for "lazy".
            graphs: whether runs become CUDA graphs.

        Raises:
            QwenImageError: TensorRT for RTX makes no configuration or no cache.
        """
        self._session, self._engine, self._component = session, engine, component
        self._path = jit_cache_path(plan, session.device, session.version)
        self._config = made("runtime configuration", session.log, engine.create_runtime_config)
        self._config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        kinds = trt.DynamicShapesKernelSpecializationStrategy
        self._config.dynamic_shapes_kernel_specialization_strategy = (
            kinds.EAGER if specialization == "eager" else kinds.LAZY
        )
        self._config.cuda_graph_strategy = (
            trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE if graphs else trt.CudaGraphStrategy.DISABLED
        )
        self._cache = made("runtime cache", session.log, self._config.create_runtime_cache)
        self._kept_bytes = self._take()
        if not self._config.set_runtime_cache(self._cache):
            raise QwenImageError(f"{PRODUCT.text} does not take its runtime cache: {session.log.errors()}")

    def make(self) -> "trt.IExecutionContext":
        """Return a new execution context, for which the JIT compiles what the cache does not hold.

        Raises:
            QwenImageError: TensorRT for RTX makes no context.
        """
        with self._session.context.current():
            return made(
                "execution context", self._session.log, lambda: self._engine.create_execution_context(self._config)
            )

    def keep(self) -> None:
        """Write the compiled kernels to their file if there are more than it has."""
        try:
            with self._session.context.current():
                kernels = made("serialized runtime cache", self._session.log, self._cache.serialize)
            if self._kept_bytes < kernels.nbytes <= MOST_BYTES:
                write_kernels(self._path, cast(bytes, kernels))  # a buffer, which the stub does not say
                self._kept_bytes = kernels.nbytes
        except (OSError, QwenImageError, RuntimeError) as error:
            # One text for all components, so that it is told once.
            reason = getattr(error, "strerror", None) or one_line(error)
            warnings.warn(
                f"kernels that were compiled for this GPU cannot be kept in {self._path.parent} ({reason}); the next "
                "process compiles them again",
                RuntimeWarning,
                stacklevel=3,
            )

    def _take(self) -> int:
        """Fill the cache from the file and return the bytes; 0 if there is no file, or none that can be used."""
        try:
            kernels = read_kernels(self._path)
            if not kernels:
                return 0
            with self._session.context.current():
                if self._cache.deserialize(kernels):
                    return len(kernels)
        except (OSError, QwenImageError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or one_line(error)
            self._warn(f"cannot be used ({reason}); its kernels are compiled again")
        else:
            self._warn("is damaged or from another system; its kernels are compiled again")
        return 0

    def _warn(self, words: str) -> None:
        warnings.warn(f"{self._component}: {self._path} {words}", RuntimeWarning, stacklevel=4)


def set_compute_capabilities(
    config: "trt.IBuilderConfig", component: str, capabilities: Sequence[str], log: Log
) -> None:
    """Set the compute capabilities that a build is for, such as "8.9".

    Raises:
        QwenImageError: TensorRT for RTX does not build for one of them.
    """
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        known = getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}", None)
        if known is None or not config.set_compute_capability(known, index):
            raise QwenImageError(
                f"{component}: {PRODUCT.text} does not build for compute capability {capability}: {log.errors()}"
            )
