"""Loading of a plan: streamed from its file, refitted if it has no weights, with its weights on the device or the host.

It has not run on a GPU yet. Every call is checked against the types of the bindings of both products.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from qwen_image_engine.engines.core.components import COMPONENTS
from qwen_image_engine.engines.core.contract_check import PortFacts
from qwen_image_engine.engines.core.errors import OutOfDeviceMemory, QwenImageError, is_memory, one_line
from qwen_image_engine.engines.core.files import open_regular
from qwen_image_engine.engines.plans.entry import PlanEntry
from qwen_image_engine.engines.plans.memory import SPARE
from qwen_image_engine.engines.tensorrt.bindings import PRODUCT, trt
from qwen_image_engine.engines.tensorrt.execution import axes
from qwen_image_engine.engines.tensorrt.package import TENSORRT_RTX, KernelSpecialization
from qwen_image_engine.engines.tensorrt.refit import refit
from qwen_image_engine.engines.tensorrt.rtx import check_validity
from qwen_image_engine.engines.tensorrt.session import TensorRtSession

_CHUNK_BYTES = 64 << 20

_WITHOUT_WEIGHTS = frozenset(
    row.name for row in COMPONENTS.values() if row.network == "transformer" and row.runs != "step"
)
"""Components with the same weights as the step, which runs more often. If their plans can stream weights, they keep no
weights on the device beside the step's."""


_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "FP8": "float8_e4m3fn",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}
"""Names of dtypes by TensorRT's."""


@dataclass(frozen=True)
class PlanSource:
    """A component's plan whose checksum has been checked.

    Attributes:
        path: path of the plan.
        entry: manifest entry of the plan.
        weights_bytes: bytes of the plan on the device with the weights in it, without those that are its inputs.
        scratch_bytes: most bytes that activations of any plan of the bundle take; all plans share one buffer.
        graph: path of the ONNX file that the plan was built from; a stripped plan takes its weights from it.
        rebuild: the command that builds the plan.
        specialization: when TensorRT for RTX compiles kernels for single shapes; None for its default.
        folder: folder of the bundle, in which the files of the weights are that the plan takes as inputs.
        mend: advice for a file of weights that is missing or has other contents.
    """

    path: Path
    entry: PlanEntry
    weights_bytes: int
    scratch_bytes: int
    graph: Path
    rebuild: str
    specialization: KernelSpecialization | None = None
    folder: Path = Path()
    mend: str = "export the bundle again"

    @property
    def may_stream(self) -> bool:
        """Whether weights may stay on the host. Weights that are inputs never do, and nearly all weights are then."""
        return self.entry.weight_streaming and not self.entry.bound


class _Reader(trt.IStreamReaderV2):
    """A reader of the plan's file in pieces: a plan of 14 GB is never in the host's memory as a whole.

    TensorRT calls the reader from C++, which prints exceptions and goes on, so `fault` stores an exception.
    """

    def __init__(self, file: BinaryIO) -> None:
        trt.IStreamReaderV2.__init__(self)
        self._file = file
        self.fault: OSError | None = None

    # Bindings of 11 call this with two arguments and take bytes, as their documentation says; their signature is that
    # of the C++ class.
    def read(self, num_bytes: int, stream: int) -> bytes:  # type: ignore[override]
        try:
            return self._file.read(min(num_bytes, _CHUNK_BYTES))
        except OSError as error:
            self.fault = error
            return b""

    def seek(self, offset: int, where: trt.SeekPosition) -> bool:  # type: ignore[override]
        if where == trt.SeekPosition.END:
            self._file.seek(-abs(offset), os.SEEK_END)  # TensorRT counts backward from the end
        else:
            self._file.seek(offset, os.SEEK_SET if where == trt.SeekPosition.SET else os.SEEK_CUR)
        return True


def read_plan(session: TensorRtSession, component: str, source: PlanSource) -> trt.ICudaEngine:
    """Return the engine of the plan, with its weights, ready to create contexts from.

    Raises:
        OutOfDeviceMemory: the device has no room for the weights.
        QwenImageError: the file cannot be read, or TensorRT refuses the plan, its weights, or the placement of its
            weights.
    """
    session.log.clear()
    try:
        if PRODUCT == TENSORRT_RTX:
            check_validity(session, component, source.path, source.rebuild)
        # Of each piece the bindings ask the driver where it is to lie, which needs a context.
        with open_regular(source.path) as file, session.context.current():
            reader = _Reader(file)
            engine = session.runtime.deserialize_cuda_engine(reader)
            if engine is None and reader.fault is not None:
                raise reader.fault
    except OSError as error:
        raise QwenImageError(f"{component}: cannot read {source.path}: {error.strerror or error}") from error
    except RuntimeError as error:
        raise _refused(component, source, one_line(error)) from error
    if engine is None:
        raise _refused(component, source, session.log.errors())
    if engine.num_optimization_profiles != len(source.entry.profiles):
        found, expected = engine.num_optimization_profiles, len(source.entry.profiles)
        raise _refused(component, source, f"it has {found} profiles, its manifest {expected}")
    if source.entry.stripped:
        refit(engine, source.graph, session.log, source.rebuild)
    if source.may_stream:
        _stream_weights(session, component, source, engine)
    elif source.entry.weight_streaming:
        engine.weight_streaming_budget_v2 = engine.streamable_weights_size
    return engine


def streams(engine: trt.ICudaEngine) -> bool:
    """Return whether some weights come from the host in every run."""
    return engine.weight_streaming_budget_v2 < engine.streamable_weights_size


def ports(engine: trt.ICudaEngine) -> tuple[dict[str, PortFacts], dict[str, PortFacts]]:
    """Return dtype and shape of a plan's inputs and outputs; None stands for a free axis.

    Raises:
        QwenImageError: the plan computes shapes from the numbers of an input.
    """
    sides: tuple[dict[str, PortFacts], dict[str, PortFacts]] = ({}, {})
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        if engine.is_shape_inference_io(name):
            raise QwenImageError(
                f"the plan computes shapes from {name}, which TensorRT then wants on the host; export the bundle again"
            )
        dtype = engine.get_tensor_dtype(name).name
        shape = tuple(None if size < 0 else size for size in axes(engine.get_tensor_shape(name)))
        is_output = engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT
        sides[is_output][name] = PortFacts(_DTYPES.get(dtype, dtype.lower()), shape)
    return sides


def _stream_weights(session: TensorRtSession, component: str, source: PlanSource, engine: trt.ICudaEngine) -> None:
    """Set the limit of weights on the device: as many as fit, and none for components in `_WITHOUT_WEIGHTS`.

    TensorRT's own proposal is of no use: the bindings return `get_weight_streaming_automatic_budget` as 32 bits.
    """
    engine.weight_streaming_budget_v2 = 0  # so that the sizes below have room for weights on their way
    budget = 0
    if component not in _WITHOUT_WEIGHTS:
        profiles = range(engine.num_optimization_profiles)
        sizes = (engine.get_device_memory_size_for_profile_v2(index) for index in profiles)
        scratch = max(source.scratch_bytes, *sizes)
        taken = max(0, scratch - session.scratch.nbytes) + session.device.total_bytes // SPARE
        budget = max(0, min(session.context.free_bytes() - taken, engine.streamable_weights_size))
    engine.weight_streaming_budget_v2 = budget
    if engine.weight_streaming_budget_v2 != budget:
        raise _refused(component, source, f"it does not take {budget} bytes as the most of its weights on the device")


def _refused(component: str, source: PlanSource, why: str) -> QwenImageError:
    if is_memory(RuntimeError(why)):
        return OutOfDeviceMemory(
            f"{component}: the GPU has not enough memory for {source.path} ({why}); run with --memory sequential, keep "
            f"weights on the host with: {source.rebuild} --weight-streaming, or export with --precision fp8 or int8"
        )
    return QwenImageError(
        f"{component}: {PRODUCT.text} cannot use {source.path}: {why}; build it again with: {source.rebuild}"
    )
