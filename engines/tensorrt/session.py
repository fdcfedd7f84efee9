"""What all TensorRT engines of a process share: the runtime, one stream, one scratch buffer. Imports TensorRT.

Nothing of it has run on a GPU yet; every call is checked against the types of TensorRT 11.4's own bindings.
"""

from dataclasses import dataclass

from qwen_image_engine.engines.cuda.driver import DeviceFacts
from qwen_image_engine.engines.cuda.memory import CudaContext, CudaMemory
from qwen_image_engine.engines.cuda.stream import CudaStream
from qwen_image_engine.engines.tensorrt.bindings import Log, made, process_log, trt
from qwen_image_engine.engines.tensorrt.package import tensorrt
from qwen_image_engine.engines.tensorrt.scratch import Scratch


@dataclass(frozen=True, eq=False)
class TensorRtSession:
    """The first device with a runtime on it. One engine runs at a time.

    Attributes:
        device: its facts when this was opened.
        version: of TensorRT.
        log: of the runtime and everything that it makes.
        runtime: what reads plans.
        context: of the device.
        stream: everything here runs in it.
        scratch: activations of whichever engine runs.
    """

    device: DeviceFacts
    version: str
    log: Log
    runtime: trt.Runtime
    context: CudaContext
    stream: CudaStream
    scratch: Scratch

    @classmethod
    def open(cls, device: DeviceFacts) -> "TensorRtSession":
        """Make the runtime on `device`; that there are a driver and a device must be known, or TensorRT crashes.

        Raises:
            QwenImageError: the driver or TensorRT refuses.
        """
        version = str(tensorrt().__version__)
        context = CudaContext.open()
        log = process_log()
        runtime = made("runtime", log, lambda: trt.Runtime(log))
        # Code of a plan that runs on the host is never wanted, whatever the default of a version is.
        runtime.engine_host_code_allowed = False
        scratch = Scratch(lambda nbytes: CudaMemory(context, nbytes, "activations"))
        return cls(device, version, log, runtime, context, CudaStream(context), scratch)
