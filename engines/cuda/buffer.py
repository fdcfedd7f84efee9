"""A stretch of device memory with its twin in page-locked memory, for what goes up or comes down."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen_image_engine.engines.cuda.memory import CudaContext, CudaMemory
from qwen_image_engine.engines.cuda.stream import CudaStream, HostMemory


class DeviceBuffer:
    """Both have `nbytes`; what is put or asked for may be shorter."""

    def __init__(self, context: CudaContext, nbytes: int) -> None:
        """Allocate both.

        Raises:
            OutOfDeviceMemory: there is no room.
        """
        self.nbytes = nbytes
        self.host = HostMemory(context, nbytes)
        self.device = CudaMemory(context, nbytes, "inputs and outputs")

    def upload(self, stream: CudaStream, rows: NDArray[Any]) -> None:
        """Put a contiguous array's copy to the device into a stream; the one before must be done."""
        self.host.bytes[: rows.nbytes] = rows.reshape(-1).view(np.uint8)
        stream.upload(self.device, self.host, rows.nbytes)

    def download(self, stream: CudaStream, nbytes: int) -> None:
        """Put the copy of the first bytes to the host into a stream."""
        stream.download(self.host, self.device, nbytes)

    def read(self, target: NDArray[Any]) -> None:
        """Fill a contiguous array with what was downloaded; that must be done."""
        target.reshape(-1).view(np.uint8)[:] = self.host.bytes[: target.nbytes]
