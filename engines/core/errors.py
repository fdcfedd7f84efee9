"""The project's errors. Every failure that a user can fix is a `QwenImageError` whose text names the remedy."""

import re
from collections.abc import Mapping
from pathlib import Path


class QwenImageError(Exception):
    """The base of the errors for a user. The text is one line: what was found, what was expected, what to do."""


class OutOfMemory(QwenImageError):
    """The error that host or GPU has too little memory. A smaller request may fit."""


class OutOfDeviceMemory(OutOfMemory):
    """The error that a GPU has too little memory. Freeing other engines may help."""


class Cancelled(QwenImageError):
    """The error that the caller cancelled the request. If a caller's `on_step` raises it, the run ends too."""


class UsageError(QwenImageError):
    """The error that a request is invalid, for example its size, step count or an option; exit code 2.

    Attributes:
        for_client: the text for a client of the server: its advice names fields of a request, never a flag.
    """

    def __init__(self, text: str, *, for_client: str | None = None) -> None:
        super().__init__(text)
        self.for_client = text if for_client is None else for_client


_SOURCE_LINES = re.compile(
    r"Exception from \S+:\d+:"
    r"|Check '[^']*' failed at \S+:\d+:"
    r"|/onnxruntime_src/\S+:\d+ .*?\) "
    r"|\[ONNXRuntimeError\] : \d+ : \w+ : "
)
"""Source locations in the backends' C++ code that an error text contains. They do not help a user."""


_OUT_OF_MEMORY = (
    "failed to allocate",
    "bad_alloc",
    "bad allocation",
    "out of memory",
    "outofmemory",  # TensorRT: "Error Code 2: OutOfMemory (Requested size was 20132809216 bytes.)"
    "can not allocate",
    "cannot allocate",  # the system's words
    "can't allocate",
)


def load_failure(
    component: str, model: Path, backend: str, error: Exception, *, newer: str | None = None, on_device: bool = False
) -> QwenImageError:
    """Return the error, in one line, of a graph that `backend` could not load.

    `newer` is the sentence of `newer_than_supported` for the backend's package. `on_device` is whether the backend uses
    the GPU's memory; running out of it gives `OutOfDeviceMemory`.
    """
    if is_memory(error):
        return (OutOfDeviceMemory if on_device else OutOfMemory)(
            f"{component}: not enough memory to load {model} in {backend} ({one_line(error)}); "
            "run with --memory sequential, or export with --precision int8"
        )
    return QwenImageError(
        f"{component}: {backend} cannot load {model}: {one_line(error)}; "
        + (newer or "qwen-image verify tells whether the files are whole, and qwen-image doctor the versions")
    )


def run_failure(
    component: str,
    sizes: Mapping[str, int],
    backend: str,
    error: Exception,
    *,
    newer: str | None = None,
    on_device: bool = False,
) -> QwenImageError:
    """Return the error, in one line with the sizes of the call, of a run that failed in `backend`.

    `newer` and `on_device` are those of `load_failure`.
    """
    call = ", ".join(f"{name}={size}" for name, size in sizes.items())
    if is_memory(error):
        return (OutOfDeviceMemory if on_device else OutOfMemory)(
            f"{component}: {backend} has not enough memory for {call} ({one_line(error)}); "
            "ask for a smaller size, fewer images, or --memory sequential (qwen-image plan --size tells what one takes)"
        )
    advice = f"; {newer}" if newer else ""
    return QwenImageError(f"{component}: the run in {backend} failed for {call}: {one_line(error)}{advice}")


def closed(component: str) -> QwenImageError:
    """Return the error of a run after `close`."""
    return QwenImageError(f"{component}: this engine is closed; load it again")


def one_line(error: BaseException) -> str:
    """Return the text of an error without line breaks and without the C++ source locations in it.

    A text from C++ that is no UTF-8 comes as a UnicodeDecodeError. It is returned with the bytes that do not decode
    escaped: "\\xff".
    """
    text = error.object.decode("utf-8", "backslashreplace") if isinstance(error, UnicodeDecodeError) else str(error)
    return " ".join(_SOURCE_LINES.sub(" ", text).split()) or type(error).__name__


def pass_interruption(error: BaseException) -> None:
    """Raise KeyboardInterrupt if one is in the chain of causes of `error`, which an extension module raised instead."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        cause = cause.__cause__ or cause.__context__


def is_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out."""
    return isinstance(error, MemoryError | OutOfMemory) or any(
        word in one_line(error).lower() for word in _OUT_OF_MEMORY
    )
