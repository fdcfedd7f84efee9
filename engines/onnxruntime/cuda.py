"""The ONNX Runtime backend on a CUDA device.

It has not run on a GPU yet. Its bindings are tested on the CPU's provider.
"""

import contextlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qwen_image_engine.engines.core import contract_check, errors
from qwen_image_engine.engines.core.bfloat16 import to_bfloat16
from qwen_image_engine.engines.core.components import EVERY_STEP
from qwen_image_engine.engines.core.contract import Contract, TensorSpec, split_axis
from qwen_image_engine.engines.core.device_array import DeviceArray, DeviceMemory, Values
from qwen_image_engine.engines.core.dtypes import DTYPES
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.core.packages import CUDA_PROVIDER, newer_than_supported
from qwen_image_engine.engines.cuda.memory import CudaContext, CudaMemory
from qwen_image_engine.engines.onnxruntime.cpu import return_freed_memory, session_options, session_ports
from qwen_image_engine.engines.onnxruntime.package import INSTALL_CUDA, onnxruntime, onnxruntime_cuda

_NAME = "ONNX Runtime CUDA"

_WORK = frozenset(
    {
        "Attention",
        "Conv",
        "Gemm",
        "GemmFloat8",
        "LayerNormalization",
        "MatMul",
        "MultiHeadAttention",
        "RMSNormalization",
    }
    | {"RotaryEmbedding"}
)
"""Operators that must run on the device. Arithmetic on shapes belongs on the host, and ONNX Runtime puts it there."""


@dataclass(frozen=True)
class Device:
    """The device that a session runs on.

    Attributes:
        kind: ONNX Runtime's name of the device type.
        provider: execution provider that runs the graph.
        options: options of the provider.
        memory: a block of the device's memory; more is allocated from it.
    """

    kind: str
    provider: str
    options: Mapping[str, str]
    memory: DeviceMemory


def cuda_device() -> Device:
    """Return the first CUDA device.

    Raises:
        QwenImageError: ONNX Runtime has no CUDA provider here, or there is no driver or device.
    """
    package = onnxruntime_cuda()
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
        package.preload_dlls()
    options = {
        "use_tf32": "0",  # what stays in float32, the VAE, is to be float32, where cuDNN has such a convolution
        "cudnn_conv_algo_search": "HEURISTIC",  # the default, exhaustive, times algorithms at every new size
        "arena_extend_strategy": "kSameAsRequested",  # the default doubles the arena
        "sdpa_kernel": "3",  # flash and memory-efficient attention, whatever ORT_DISABLE_FLASH_ATTENTION says
    }
    return Device("cuda", CUDA_PROVIDER, options, CudaMemory(CudaContext.open(), 0))


def create(model: Path, contract: Contract, threads: int | None) -> "OnnxRuntimeCudaEngine":
    """Load a graph on the first CUDA device, whatever the number of threads; raises as `load_engine` does."""
    return OnnxRuntimeCudaEngine(model, contract)


class OnnxRuntimeCudaEngine:
    """A graph in an ONNX Runtime session on a CUDA device.

    Keys and values stay on the device. All other inputs come from the host.

    Nothing falls back to the CPU. If the device has no kernel for a product, a convolution, a norm or an attention,
    loading the graph is an error.
    """

    def __init__(self, model: Path, contract: Contract, device: Device | None = None) -> None:
        """Load `model`; raises as `load_engine` does."""
        device = device or cuda_device()
        package = onnxruntime()
        contract_check.check_model_file(contract, model)
        options = session_options(package)
        # From a shape's second run on the pattern of the first is one block, beside the arena that the first run left.
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        try:
            session = package.InferenceSession(
                str(model), options, providers=[(device.provider, dict(device.options))], enable_fallback=False
            )
            ports = session_ports(session)
        except Exception as error:  # the package's errors have no base class of their own
            newer = newer_than_supported(package)
            raise errors.load_failure(contract.component, model, _NAME, error, newer=newer, on_device=True) from error
        if device.provider not in session.get_providers():
            raise QwenImageError(
                f"{contract.component}: ONNX Runtime {package.__version__} did not load {device.provider}; it needs "
                f"the libraries of CUDA 13 and cuDNN 9; {INSTALL_CUDA}"
            )
        stray = sorted(_elsewhere(session, device.provider) & _WORK)
        if stray:
            raise QwenImageError(
                f"{contract.component}: {', '.join(stray)} of {model} would run on the CPU, {device.provider} having "
                f"no kernel for it in ONNX Runtime {package.__version__}; export with --target cuda"
            )
        contract_check.check_graph(contract, model, *ports)
        self._contract, self._device, self._package = contract, device, package
        self._session: Any = session

    @property
    def contract(self) -> Contract:
        """Tensors that `run` takes and returns."""
        return self._contract

    def run(self, inputs: Mapping[str, Values]) -> dict[str, Values]:
        """Run the graph and return the outputs by name; raises as `Engine.run` does."""
        session = self._session
        if session is None:
            raise errors.closed(self._contract.component)
        sizes = contract_check.check_inputs(self._contract, inputs)
        kept = {
            spec.name: DeviceArray.empty(self._device.memory, _shape(spec, sizes), spec.dtype)
            for spec in self._contract.outputs
            if spec.is_cache
        }
        binding = session.io_binding()
        try:
            for spec in self._contract.inputs:
                self._bind_input(binding, spec, inputs[spec.name])
            for spec in self._contract.outputs:
                if spec.name in kept:
                    binding.bind_output(spec.name, *self._place(kept[spec.name]))
                else:
                    binding.bind_output(spec.name, "cpu")
            session.run_with_iobinding(binding, self._run_options())
            binding.synchronize_outputs()
            results = zip(self._contract.outputs, binding.get_outputs(), strict=True)
            host = {spec.name: value.numpy() for spec, value in results if spec.name not in kept}
        except Exception as error:  # the package's errors have no base class of their own
            component, newer = self._contract.component, newer_than_supported(self._package)
            raise errors.run_failure(component, sizes, _NAME, error, newer=newer, on_device=True) from error
        outputs: dict[str, Values] = {spec.name: (host | kept)[spec.name] for spec in self._contract.outputs}
        contract_check.check_outputs(self._contract, outputs, sizes)
        return outputs

    def close(self) -> None:
        """Free the session; see `Engine.close`."""
        if self._session is not None:
            self._session = None
            return_freed_memory()

    def _run_options(self) -> Any:
        """Return options of a run that frees the arena's memory afterwards, unless the component runs every step.

        Other sessions need that memory.
        """
        options = self._package.RunOptions()
        if self._device.kind == "cuda" and self._contract.component not in EVERY_STEP:
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "gpu:0")
        return options

    def _bind_input(self, binding: Any, spec: TensorSpec, values: Values) -> None:
        """Bind an input to its bytes. The run copies bytes on the host to the device."""
        if isinstance(values, DeviceArray):
            binding.bind_input(spec.name, *self._place(values))
        elif spec.dtype == "bfloat16":
            rounded = to_bfloat16(values)
            value = self._package.OrtValue.ortvalue_from_numpy_with_onnx_type(rounded, DTYPES[spec.dtype].onnx)
            binding.bind_ortvalue_input(spec.name, value)
        else:
            binding.bind_cpu_input(spec.name, np.ascontiguousarray(values, spec.dtype))

    def _place(self, array: DeviceArray) -> tuple[str, int, int, tuple[int, ...], int]:
        return self._device.kind, 0, DTYPES[array.dtype].onnx, array.shape, array.address


def _shape(spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(
        axis if isinstance(axis, int) else sum(_length(part, sizes) for part in axis.split("+")) for axis in spec.shape
    )


def _length(axis: str, sizes: Mapping[str, int]) -> int:
    factor, name = split_axis(axis)
    return factor * sizes[name]


def _elsewhere(session: Any, provider: str) -> set[str]:
    """Return the operators of the nodes that another provider than `provider` runs."""
    parts: Iterator[Any] = (part for part in session.get_provider_graph_assignment_info() if part.ep_name != provider)
    return {node.op_type for part in parts for node in part.get_nodes()}
