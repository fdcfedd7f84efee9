"""A writer of a plan into a file, which hashes the bytes."""

import hashlib
import os
from pathlib import Path

from qwen_image_engine.engines.tensorrt.bindings import trt


class PlanWriter(trt.IStreamWriter):
    """A stream writer that hashes the bytes as it writes: a plan of 14 GB is never whole in host memory.

    TensorRT calls `write` from C++, which prints exceptions and goes on. The writer stores an exception, and `close`
    raises it.
    """

    def __init__(self, path: Path) -> None:
        """Open `path` for writing.

        Raises:
            OSError: the file cannot be opened.
        """
        trt.IStreamWriter.__init__(self)
        self._file = path.open("wb")
        self._digest = hashlib.sha256()
        self._fault: OSError | None = None
        self.bytes = 0

    # The stub has the C++ signature; the bindings call it with one argument, as the class's docstring says.
    def write(self, data: bytes) -> int:  # type: ignore[override]
        """Append `data` and return its length, or 0 if the write failed."""
        try:
            self._file.write(data)
        except OSError as error:
            self._fault = error
            return 0
        self._digest.update(data)
        self.bytes += len(data)
        return len(data)

    def close(self) -> str:
        """Flush everything to the disk and return the SHA-256.

        Raises:
            OSError: this flush or an earlier write failed.
        """
        with self._file:
            if self._fault is not None:
                raise self._fault
            self._file.flush()
            os.fsync(self._file.fileno())
        return self._digest.hexdigest()
