"""The objects that all TensorRT engines of a process share: the runtime, a stream, a scratch buffer, weights.

This module imports TensorRT. It has not run on a GPU yet. Every call is checked against the types of the bindings of
both products.
"""

from dataclasses import dataclass

from qwen_image_engine.engines.cuda.driver import DeviceInfo
from qwen_image_engine.engines.cuda.memory import CudaContext, CudaMemory
from qwen_image_engine.engines.cuda.shared_weights import SharedWeights
from qwen_image_engine.engines.cuda.stream import CudaStream
from qwen_image_engine.engines.tensorrt.bindings import Log, made, process_log, trt
from qwen_image_engine.engines.tensorrt.scratch import Scratch


@dataclass(frozen=True, eq=False)
class TensorRtSession:
    """The first device with a TensorRT runtime. Engines run one at a time.

    Attributes:
        device: properties of the device when the session was opened.
        version: version of TensorRT.
        log: logger of the runtime and of everything that it creates.
        runtime: runtime that reads plans.
        context: primary CUDA context of the device.
        stream: stream that all work runs in.
        scratch: buffer for the activations of the engine that runs.
        weights: weights that plans take as inputs, one copy for all engines.
    """

    device: DeviceInfo
    version: str
    log: Log
    runtime: trt.Runtime
    context: CudaContext
    stream: CudaStream
    scratch: Scratch
    weights: SharedWeights

    @classmethod
    def open(cls, device: DeviceInfo) -> "TensorRtSession":
        """Create the runtime on `device`. A driver and a device must be known to exist, or TensorRT crashes.

        Raises:
            QwenImageError: the driver or TensorRT returns an error.
        """
        version = str(trt.__version__)
        context = CudaContext.open()
        log = process_log()
        runtime = made("runtime", log, lambda: trt.Runtime(log))
        # Code of a plan that runs on the host is never wanted, whatever the default of a version is.
        runtime.engine_host_code_allowed = False
        scratch = Scratch(lambda nbytes: CudaMemory(context, nbytes, "activations"))
        stream = CudaStream(context)
        return cls(device, version, log, runtime, context, stream, scratch, SharedWeights(stream))
