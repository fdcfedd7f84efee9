"""One small interface over every backend: a graph, its contract, `run`, `close`.

Backends and their packages are imported when asked for, never before.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from qwen_image_engine.engines.core.contract import Contract
from qwen_image_engine.engines.core.contract_check import Array as Array
from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.engines.core.failure import one_line, pass_interruption
from qwen_image_engine.engines.cuda.compute_capability import BF16, ONNXRUNTIME_KERNELS, runs_onnxruntime
from qwen_image_engine.engines.cuda.driver import device_facts

MAX_THREADS = 1024
"""More than any processor here has; OpenVINO starts as many as it is told, and 5,000 took minutes."""


class Engine(Protocol):
    """A component that is ready to run.

    Arrays that `run` returns belong to the caller: a later run does not overwrite them. Whether runs may overlap is
    each backend's to say; `close` must not overlap with a run.
    """

    @property
    def contract(self) -> Contract:
        """The tensors that `run` takes and returns."""
        ...

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Outputs by name: arrays of numpy, but for keys and values on a GPU, which are a `DeviceArray` each.

        An engine on a GPU takes either; one on the CPU takes arrays of numpy alone.

        Raises:
            QwenImageError: inputs that do not match the contract, a run that failed, an engine that is closed.
        """
        ...

    def close(self) -> None:
        """Free the weights and the scratch memory. Closing twice is allowed; running afterwards is an error."""
        ...


@dataclass(frozen=True)
class Backend:
    """A backend and how it is installed here: `version`, or where that is None, in `missing`, why and what to do."""

    name: str
    version: str | None
    missing: str | None


ENGINES = ("onnxruntime", "onnxruntime-cuda", "openvino", "openvino-bf16", "tensorrt")
"""What runs bundles. "openvino-bf16" is OpenVINO computing in bf16 what is not quantised; "tensorrt" runs no graph but
the plan that was built of it, so it is loaded through `runtime.bundle.Bundle` alone."""

ON_GPU = ("onnxruntime-cuda", "tensorrt")
"""Of those, what keeps keys and values on a GPU, in 16 bits."""

_EXTRAS = {"onnxruntime": "cpu", "onnxruntime-cuda": "cuda", "openvino": "openvino", "tensorrt": "tensorrt"}

CUDA_PROVIDER = "CUDAExecutionProvider"

INSTALL_CUDA = (
    "onnxruntime and onnxruntime-gpu hold the same package and must not both be installed: "
    "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'qwen-image-engine[cuda]'"
)
"""What mends an installation without CUDA."""


def load_engine(backend: str, model: Path, contract: Contract, threads: int | None = None) -> Engine:
    """The graph in the file `model` on `backend`, one of `ENGINES` but "tensorrt".

    Args:
        backend: what runs it.
        model: the file.
        contract: the tensors that it takes and returns.
        threads: of one run on the CPU; None leaves it to the backend, which takes every core.

    Raises:
        UsageError: no such backend, or fewer threads than one.
        QwenImageError: its package is not installed, the processor has no bf16 or the machine no GPU where that is
            asked for, the file is missing or no ONNX model, the graph is another than its contract's, or memory does
            not suffice.
    """
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise UsageError(f"{threads} threads: expected 1 to {MAX_THREADS}")
    if backend == "onnxruntime":
        from qwen_image_engine.engines.onnxruntime.cpu import OnnxRuntimeEngine

        return OnnxRuntimeEngine(model, contract, threads)
    if backend == "onnxruntime-cuda":
        from qwen_image_engine.engines.onnxruntime.cuda import OnnxRuntimeCudaEngine

        return OnnxRuntimeCudaEngine(model, contract)
    if backend in ("openvino", "openvino-bf16"):
        from qwen_image_engine.engines.openvino.cpu import OpenVinoEngine

        return OpenVinoEngine(model, contract, threads, "bf16" if backend == "openvino-bf16" else "f32")
    if backend == "tensorrt":
        raise UsageError("tensorrt runs what qwen-image build made of a bundle's graphs, not a graph; load a bundle")
    raise UsageError(f"unknown engine {backend!r}; known: {', '.join(ENGINES)}")


def package_name(backend: str) -> str:
    """The package that the backend of that name runs on, as it is installed."""
    return "onnxruntime-gpu" if backend == "onnxruntime-cuda" else backend.removesuffix("-bf16")


def available() -> tuple[Backend, ...]:
    """Every backend with its version or why it is missing; imports the packages, which proves that they load."""
    return tuple(_facts(name) for name in _EXTRAS)


def require(name: str) -> Any:
    """The package of backend `name`, one of `ENGINES`.

    Raises:
        QwenImageError: it is not installed, or installed and does not load; or CUDA is asked for and ONNX Runtime is
            built without, or for no such GPU; or a GPU is needed and there is no driver or none.
    """
    name = name.removesuffix("-bf16")
    module, install = name.removesuffix("-cuda"), f"pip install 'qwen-image-engine[{_EXTRAS[name]}]'"
    try:
        package = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module:
            raise QwenImageError(f"{module} is not installed; install it with: {install}") from None
        raise QwenImageError(
            f"{module} needs the package {error.name}, which is not installed; install it again with: {install}"
        ) from error
    except (ImportError, OSError) as error:
        pass_interruption(error)
        raise QwenImageError(
            f"{module} is installed and does not load ({one_line(error)}); install it again with: {install}"
        ) from error
    if name == "tensorrt":
        device_facts()
    if name == "onnxruntime-cuda":
        if CUDA_PROVIDER not in package.get_available_providers():
            raise QwenImageError(f"onnxruntime {package.__version__} is installed without CUDA; {INSTALL_CUDA}")
        device = device_facts()
        if not runs_onnxruntime(device.compute_capability):
            instead = "tensorrt" if float(device.compute_capability) >= BF16 else "cpu"
            raise QwenImageError(
                f"{device.name} has compute capability {device.compute_capability}, and onnxruntime-gpu as it is "
                f"published has kernels for {', '.join(f'{a}.{b}' for a, b in ONNXRUNTIME_KERNELS.items())} and later "
                f"ones of the same major number alone; export with --target {instead}"
            )
    return package


def _facts(name: str) -> Backend:
    try:
        return Backend(name, str(require(name).__version__), None)
    except QwenImageError as error:
        return Backend(name, None, str(error))
