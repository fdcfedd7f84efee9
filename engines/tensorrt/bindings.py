"""TensorRT's bindings, imported here alone, and its log: warnings on standard error, errors kept for exceptions.

What the log says in more detail is dropped, except what a caller asks to keep.

Every other module takes `trt` from here: the package tensorrt, or tensorrt_rtx, which has the same API, as
`engines.tensorrt.package.choose` was told before this module is imported.
"""

import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from qwen_image_engine.engines.core.errors import QwenImageError, one_line
from qwen_image_engine.engines.tensorrt.package import chosen

PRODUCT = chosen()
"""The product whose bindings `trt` are."""

if TYPE_CHECKING:
    import tensorrt as trt
else:
    trt = importlib.import_module(PRODUCT.module)

__all__ = ["PRODUCT", "Log", "made", "process_log", "trt"]

_MOST_KEPT = 5

_Made = TypeVar("_Made")


@functools.cache
def process_log() -> "Log":
    """Return the logger of this process.

    TensorRT keeps the first logger that it is given and sends some messages to no other.
    """
    return Log()


class Log(trt.ILogger):
    """The logger for all TensorRT objects of a process."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self._errors: list[str] = []
        self._kept: list[str] = []
        self._is_kept: Callable[[str], bool] = lambda message: False

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Log a message. TensorRT calls this from any thread."""
        if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
            self._errors = [*self._errors, msg][-_MOST_KEPT:]
        if severity in (trt.ILogger.Severity.INFO, trt.ILogger.Severity.VERBOSE):
            if self._is_kept(msg):
                self._kept.append(msg)
        else:
            print(f"{PRODUCT.text}: {msg}", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Forget earlier errors, before a call whose own errors matter."""
        self._errors = []

    @contextmanager
    def keeping(self, is_kept: Callable[[str], bool]) -> Iterator[list[str]]:
        """Keep the messages of severity INFO and VERBOSE for which `is_kept` is true, and yield the list of them."""
        self._kept, self._is_kept = [], is_kept
        try:
            yield self._kept
        finally:
            self._is_kept = lambda message: False

    @property
    def failed(self) -> bool:
        """Whether TensorRT logged an error since `clear`."""
        return bool(self._errors)

    def errors(self) -> str:
        """Return the last errors in one line."""
        return " ".join("; ".join(self._errors).split()) or "it gives no reason"


def made(what: str, log: Log, make: Callable[[], _Made | None]) -> _Made:
    """Call `make` and return the object that it makes; `what` names the object in the error.

    If TensorRT makes nothing, a constructor of the bindings raises a TypeError ("pybind11::init(): factory function
    returned nullptr") and a method returns None.

    Raises:
        QwenImageError: TensorRT made nothing. The text has the errors that TensorRT logged.
    """
    log.clear()
    try:
        found = make()
    except TypeError as error:
        raise QwenImageError(f"{PRODUCT.text} makes no {what}: {log.errors()} ({one_line(error)})") from error
    if found is None:
        raise QwenImageError(f"{PRODUCT.text} makes no {what}: {log.errors()}")
    return found
