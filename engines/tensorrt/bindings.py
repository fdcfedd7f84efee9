"""What TensorRT has to say: warnings on standard error, errors kept for the exception that names them."""

import functools
import sys

import tensorrt as trt

_MOST_KEPT = 5


@functools.cache
def process_log() -> "Log":
    """That of this process: TensorRT keeps the first logger that it is given, and lets no other have some messages."""
    return Log()


class Log(trt.ILogger):
    """A logger for everything of one process."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self._errors: list[str] = []

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Called by TensorRT, from any thread."""
        if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
            self._errors = [*self._errors, msg][-_MOST_KEPT:]
        if severity not in (trt.ILogger.Severity.INFO, trt.ILogger.Severity.VERBOSE):
            print(f"TensorRT: {msg}", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Forget earlier errors, before a call whose own are wanted."""
        self._errors = []

    @property
    def failed(self) -> bool:
        """Whether there was an error since `clear`."""
        return bool(self._errors)

    def errors(self) -> str:
        """The last errors in one line."""
        return " ".join("; ".join(self._errors).split()) or "it gives no reason"
