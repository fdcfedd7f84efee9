"""The ONNX Runtime backend on the CPU."""

import ctypes
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qwen_image_engine.engines.core import contract_check, errors
from qwen_image_engine.engines.core.components import COMPONENTS
from qwen_image_engine.engines.core.contract import CODES, Contract
from qwen_image_engine.engines.core.contract_check import Array, PortFacts
from qwen_image_engine.engines.core.dtypes import DTYPES
from qwen_image_engine.engines.core.graph.linked_weights import weights_in_folder
from qwen_image_engine.engines.core.packages import newer_than_supported
from qwen_image_engine.engines.onnxruntime.package import onnxruntime
from qwen_image_engine.engines.onnxruntime.saturation import products_saturate

_WITHOUT_PREPACKING = frozenset(
    row.name for row in COMPONENTS.values() if row.runs in ("prompt", "image") and row.network != "vae"
)
"""Components that run once for many pictures, except the VAE's. Their weights are not prepacked.

Prepacking 7 GB of int8 weights for the kernels takes 22 s of one core and 7 GB of memory. On the mapped file a run
takes 9 s more and 0.5 GB (`benchmarks/results/full-size-run-*`). The set is the same under every memory policy: fp32
products of the two kinds of kernel differ in their last bits."""

_WITHOUT_ARENA = frozenset(row.name for row in COMPONENTS.values() if row.on_latents)
"""Components with large tensors of many sizes. Their sessions use no memory arena.

The arena keeps all memory that it took, and these tensors fit badly into it. At the released widths a step of 1024x1024
takes 3.3 GB beside its weights with the arena and 1.9 without, in the same time. For tensors below 32 MB glibc's heap
is worse: a prefix of 1,000 tokens takes 1.6 GB with the arena and 3.7 without."""

_DTYPES = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(float8e4m3fn)": CODES}


def create(model: Path, contract: Contract, threads: int | None) -> "OnnxRuntimeEngine":
    """Load a graph; raises as `load_engine` does."""
    return OnnxRuntimeEngine(model, contract, threads)


class OnnxRuntimeEngine:
    """A graph in an ONNX Runtime session on the CPU, computed in the dtypes that the graph states.

    `run` may be called from several threads at once; the runs share the session's thread pool. Weights are mapped and
    copied once, in the order that the kernels need. Weights of components that run once a prompt are not copied.
    Sessions share no copy.
    """

    def __init__(self, model: Path, contract: Contract, threads: int | None = None) -> None:
        """Load `model`; raises as `load_engine` does."""
        package = onnxruntime()
        contract_check.check_model_file(contract, model)
        options = session_options(package, threads)
        options.enable_cpu_mem_arena = contract.component not in _WITHOUT_ARENA
        if contract.component in _WITHOUT_PREPACKING:
            options.add_session_config_entry("session.disable_prepacking", "1")
        try:
            with weights_in_folder(contract.component, model, follows=[model.resolve().parent]) as path:
                session = package.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            ports = session_ports(session)
        except errors.QwenImageError:
            raise
        except Exception as error:  # the package's errors have no base class of their own
            newer = newer_than_supported(package)
            raise errors.load_failure(contract.component, model, "ONNX Runtime", error, newer=newer) from error
        contract_check.check_graph(contract, model, *ports)
        self._contract = contract
        self._package = package
        self._session: Any = session
        self._runs: list[Any] = []

    @property
    def contract(self) -> Contract:
        """Tensors that `run` takes and returns."""
        return self._contract

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph and return the outputs by name; raises as `Engine.run` does."""
        session = self._session
        if session is None:
            raise errors.closed(self._contract.component)
        sizes = contract_check.check_inputs(self._contract, inputs)
        names = [spec.name for spec in self._contract.outputs]
        options = self._package.RunOptions()
        self._runs.append(options)
        try:
            outputs = dict(zip(names, session.run(names, self._fed(inputs), options), strict=True))
        except Exception as error:  # the package's errors have no base class of their own
            if options.terminate:
                raise errors.Cancelled(f"{self._contract.component}: the run was cancelled") from error
            newer = newer_than_supported(self._package)
            raise errors.run_failure(self._contract.component, sizes, "ONNX Runtime", error, newer=newer) from error
        finally:
            self._runs.remove(options)
        contract_check.check_outputs(self._contract, outputs, sizes)
        return outputs

    def _fed(self, inputs: Mapping[str, Array]) -> dict[str, Any]:
        """Return the inputs as the session takes them: codes of FP8, which numpy does not have, with their type."""
        values = self._package.OrtValue
        codes = {
            spec.name: values.ortvalue_from_numpy_with_onnx_type(
                np.ascontiguousarray(inputs[spec.name]), DTYPES[CODES].onnx
            )
            for spec in self._contract.inputs
            if spec.dtype == CODES
        }
        return {**inputs, **codes}

    def cancel(self) -> None:
        """End the current runs, each before its next operator; see `CancellableEngine.cancel`."""
        for options in tuple(self._runs):
            options.terminate = True

    def close(self) -> None:
        """Free the session; see `Engine.close`."""
        if self._session is not None:
            self._session = None
            return_freed_memory()


def session_options(package: Any, threads: int | None = None) -> Any:
    """Return the `onnxruntime.SessionOptions` that every session of this package uses."""
    options = package.SessionOptions()
    options.intra_op_num_threads = threads or 0
    # 4 = fatal: what fails is raised, and the command prints one line.
    options.log_severity_level = 4
    # Threads that spin between operators doubled a step's time (62 against 34 ms) where another process had a core.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if products_saturate():
        # int8 weights are turned into uint8, whose products are exact: 1e-7 in the place of 1e-1. Not elsewhere: with
        # VNNI they are exact as they are, and those of uint8 take 2.4 times as long.
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def session_ports(session: Any) -> tuple[dict[str, PortFacts], dict[str, PortFacts]]:
    """Return dtype and shape of the inputs and of the outputs of a session, by name."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    return {port.name: _port_facts(port) for port in inputs}, {port.name: _port_facts(port) for port in outputs}


def _port_facts(port: Any) -> PortFacts:
    shape = tuple(axis if isinstance(axis, int) else None for axis in port.shape)
    return PortFacts(_DTYPES.get(port.type, port.type.removeprefix("tensor(").removesuffix(")")), shape)


def return_freed_memory() -> None:
    """Make the C library return freed memory to the system, if the library has a call for it (only glibc has).

    ONNX Runtime's copy of the weights lies on glibc's heap, which keeps it. After a session was freed, none of 256 MiB
    was returned; after this call all of it was (0.09 s). Without the call a freed stage would count while the next one
    loads.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(ctypes.c_size_t(0))
