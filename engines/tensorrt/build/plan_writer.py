"""A plan's bytes on their way to a file."""

import hashlib
import os
from pathlib import Path

from qwen_image_engine.engines.tensorrt.bindings import trt


class PlanWriter(trt.IStreamWriter):
    """Writes what TensorRT gives it, hashing it meanwhile: a plan of 14 GB is never whole in host memory.

    TensorRT calls `write` from C++, which prints exceptions and goes on; so one is kept, and `close` raises it.
    """

    def __init__(self, path: Path) -> None:
        """Open `path` for writing.

        Raises:
            OSError: it cannot be opened.
        """
        trt.IStreamWriter.__init__(self)
        self._file = path.open("wb")
        self._digest = hashlib.sha256()
        self._fault: OSError | None = None
        self.bytes = 0

    # The stub has the C++ signature; the bindings call it with one argument, as the class's docstring says.
    def write(self, data: bytes) -> int:  # type: ignore[override]
        """Append `data` and give its length, 0 where the file takes no more."""
        try:
            self._file.write(data)
        except OSError as error:
            self._fault = error
            return 0
        self._digest.update(data)
        self.bytes += len(data)
        return len(data)

    def close(self) -> str:
        """Put everything on the disk and give the SHA-256.

        Raises:
            OSError: a write failed, this one or an earlier one.
        """
        with self._file:
            if self._fault is not None:
                raise self._fault
            self._file.flush()
            os.fsync(self._file.fileno())
        return self._digest.hexdigest()
