"""The OpenVINO backends on the CPU."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qwen_image_engine.engines.core import contract_check, errors
from qwen_image_engine.engines.core.contract import CODES, Contract
from qwen_image_engine.engines.core.contract_check import Array, PortFacts
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.core.graph.linked_weights import weights_in_folder
from qwen_image_engine.engines.core.packages import newer_than_supported
from qwen_image_engine.engines.openvino.package import FAILURES, core, openvino
from qwen_image_engine.engines.openvino.saturation import has_int8_weights, products_saturate

_DTYPES = {
    "f32": "float32",
    "f64": "float64",
    "f16": "float16",
    "bf16": "bfloat16",
    "i64": "int64",
    "i32": "int32",
    "f8e4m3": CODES,
}

InferencePrecision = Literal["f32", "bf16"]

RUNTIME_CACHE_CAPACITY = 128
"""Compiled kernels of each kind that a graph keeps, the most recently used.

OpenVINO's default is 5000. Each new shape then adds some 2.5 MB to a process with the five graphs of `shapes`, up to
gigabytes. A shape needs fewer than 16 kernels of a kind, because layers share them. With 0, layers share none, and new
shapes take a fifth more time.
"""


def create(model: Path, contract: Contract, threads: int | None) -> "OpenVinoEngine":
    """Load a graph that is computed in fp32; raises as `load_engine` does."""
    return OpenVinoEngine(model, contract, threads)


def create_bf16(model: Path, contract: Contract, threads: int | None) -> "OpenVinoEngine":
    """Load a graph that is computed in bf16 except for quantised linears; raises as `load_engine` does."""
    return OpenVinoEngine(model, contract, threads, "bf16")


class OpenVinoEngine:
    """A graph compiled by OpenVINO for the CPU, computed in fp32 by default, except for quantised linears.

    One run at a time: a second thread needs an engine of its own. Weights are copied once, in the order that the
    kernels need. Weights stored in bf16 are in memory twice, in fp32.
    """

    def __init__(
        self,
        model: Path,
        contract: Contract,
        threads: int | None = None,
        inference_precision: InferencePrecision = "f32",
    ) -> None:
        """Load `model`, computing all unquantised parts in `inference_precision`.

        Raises:
            QwenImageError: the graph cannot be loaded for a reason that `load_engine` lists, or the processor has no
                instructions for this precision.
        """
        package = openvino()
        contract_check.check_model_file(contract, model)
        try:
            _check_precision(contract, inference_precision)
            with weights_in_folder(contract.component, model) as path:
                graph = core().read_model(str(path))
            settings = compile_settings(graph, threads, inference_precision)
            compiled = core().compile_model(graph, "CPU", settings)
            expected = {spec.name for spec in (*contract.inputs, *contract.outputs)}
            inputs, outputs = (
                {_name(port, expected): _facts(port) for port in side} for side in (compiled.inputs, compiled.outputs)
            )
        except FAILURES as error:
            newer = newer_than_supported(package)
            raise errors.load_failure(contract.component, model, "OpenVINO", error, newer=newer) from error
        contract_check.check_graph(contract, model, inputs, outputs)
        self._contract = contract
        self._compiled: Any = compiled
        self._runs: list[_Run] = []

    @property
    def contract(self) -> Contract:
        """Tensors that `run` takes and returns."""
        return self._contract

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph and return the outputs by name; raises as `Engine.run` does."""
        if self._compiled is None:
            raise errors.closed(self._contract.component)
        sizes = contract_check.check_inputs(self._contract, inputs)
        try:
            # Inputs are read in place (the prefix cache is large), outputs are copied out of the request. One that was
            # kept would hold the inputs and outputs of its last run, gigabytes of keys and values; making one is free.
            request = self._compiled.create_infer_request()
            run = _Run(request)
            self._runs.append(run)
            try:
                # `infer` could not be cancelled: it would go on to its end.
                request.start_async(self._fed(inputs), share_inputs=True)
                request.wait()
            finally:
                self._runs.remove(run)
            outputs = {spec.name: request.get_tensor(spec.name).data.copy() for spec in self._contract.outputs}
        except FAILURES as error:
            if run.cancelled:
                raise errors.Cancelled(f"{self._contract.component}: the run was cancelled") from error
            newer = newer_than_supported(openvino())
            raise errors.run_failure(self._contract.component, sizes, "OpenVINO", error, newer=newer) from error
        contract_check.check_outputs(self._contract, outputs, sizes)
        return outputs

    def _fed(self, inputs: Mapping[str, Array]) -> dict[str, Any]:
        """Return the inputs as a request takes them: codes of FP8, which numpy does not have, with their type."""
        package = openvino()
        codes = {
            spec.name: package.Tensor(values, values.shape, package.Type.f8e4m3)
            for spec in self._contract.inputs
            if spec.dtype == CODES
            for values in [np.ascontiguousarray(inputs[spec.name])]
        }
        return {**inputs, **codes}

    def cancel(self) -> None:
        """End the current runs, each before its next operator; see `CancellableEngine.cancel`."""
        for run in tuple(self._runs):
            run.cancel()

    def close(self) -> None:
        """Free the compiled graph; see `Engine.close`."""
        self._compiled = None


class _Run:
    """An inference request that is running."""

    def __init__(self, request: Any) -> None:
        self._request = request
        self.cancelled = False

    def cancel(self) -> None:
        """Cancel the request. `wait` raises in the thread that waits."""
        self.cancelled = True
        self._request.cancel()


def compile_settings(
    graph: Any, threads: int | None = None, inference_precision: InferencePrecision = "f32"
) -> dict[str, Any]:
    """Return the settings with which every `openvino.Model` is compiled here."""
    # By default OpenVINO computes in bf16 where the CPU has it (relative L2 2e-3 after one product), and may quantise
    # activations in front of compressed weights.
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": inference_precision,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        "CPU_RUNTIME_CACHE_CAPACITY": RUNTIME_CACHE_CAPACITY,
    }
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    if has_int8_weights(graph) and products_saturate():
        # Quantised linears then run in fp32 on int8 weights: no faster than an fp32 bundle, and right.
        settings["LP_TRANSFORMS_MODE"] = "NO"
    return settings


def _check_precision(contract: Contract, precision: InferencePrecision) -> None:
    """Raise if the processor has no instructions for `precision`: OpenVINO would compute in fp32 without a warning."""
    if precision == "bf16" and "BF16" not in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise QwenImageError(
            f"{contract.component}: this processor has no bf16 instructions (avx512_bf16 or amx_bf16); "
            "use the engine openvino, which computes in fp32"
        )


def _name(port: Any, expected: set[str]) -> str:
    """Return the contract's name of a port if it has one; a port may carry several names for one tensor."""
    names: set[str] = port.names
    return min(names & expected or names)


def _facts(port: Any) -> PortFacts:
    shape = port.partial_shape
    axes = None if shape.rank.is_dynamic else tuple(axis.get_length() if axis.is_static else None for axis in shape)
    name = port.element_type.get_type_name()
    return PortFacts(_DTYPES.get(name, name), axes)
