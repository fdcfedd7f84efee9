"""A buffer on the device with a page-locked copy on the host, for inputs to upload and outputs to download."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen_image_engine.engines.cuda.memory import CudaContext, CudaMemory
from qwen_image_engine.engines.cuda.stream import CudaStream, HostMemory


class DeviceBuffer:
    """A block of device memory and a block of page-locked host memory, both of `nbytes` bytes.

    Uploaded and downloaded arrays may be shorter.
    """

    def __init__(self, context: CudaContext, nbytes: int) -> None:
        """Allocate both blocks of memory.

        Raises:
            OutOfDeviceMemory: the device or the host has no room for `nbytes` bytes.
        """
        self.nbytes = nbytes
        self.host = HostMemory(context, nbytes)
        self.device = CudaMemory(context, nbytes, "inputs and outputs")

    def upload(self, stream: CudaStream, rows: NDArray[Any]) -> None:
        """Enqueue a copy of a contiguous array to the device. The previous upload must be done."""
        self.host.bytes[: rows.nbytes] = rows.reshape(-1).view(np.uint8)
        stream.upload(self.device, self.host, rows.nbytes)

    def download(self, stream: CudaStream, nbytes: int) -> None:
        """Enqueue a copy of the first `nbytes` bytes to the host."""
        stream.download(self.host, self.device, nbytes)

    def read(self, target: NDArray[Any]) -> None:
        """Fill a contiguous array with the downloaded bytes. The download must be done."""
        target.reshape(-1).view(np.uint8)[:] = self.host.bytes[: target.nbytes]
