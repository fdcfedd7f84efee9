"""The project's errors: every failure that a user can mend is a `QwenImageError` whose text says how."""

import re
from collections.abc import Mapping
from pathlib import Path


class QwenImageError(Exception):
    """Base of every error raised on purpose. The text is one line: what was found, what was expected, what to do."""


class OutOfDeviceMemory(QwenImageError):
    """A GPU's memory does not suffice; freeing other engines may mend it."""


class Cancelled(QwenImageError):
    """A request that its caller has cancelled; raised by a caller's `on_step`, it ends the run too."""


class UsageError(QwenImageError):
    """A request that can never be carried out as asked (a size, a step count, an unknown option): exit code 2."""


_SOURCE_LINES = re.compile(
    r"Exception from \S+:\d+:"
    r"|Check '[^']*' failed at \S+:\d+:"
    r"|/onnxruntime_src/\S+:\d+ .*?\) "
    r"|\[ONNXRuntimeError\] : \d+ : \w+ : "
)
"""Where in the backends' C++ an error arose, which tells a user nothing."""


_OUT_OF_MEMORY = (
    "failed to allocate",
    "bad_alloc",
    "bad allocation",
    "out of memory",
    "outofmemory",  # TensorRT: "Error Code 2: OutOfMemory (Requested size was 20132809216 bytes.)"
    "can not allocate",
    "can't allocate",
)


def load_failure(
    component: str, model: Path, backend: str, error: Exception, on_device: bool = False
) -> QwenImageError:
    """The error of a graph that `backend` could not load, in one line; `on_device` says whose memory it uses."""
    if is_memory(error):
        return (OutOfDeviceMemory if on_device else QwenImageError)(
            f"{component}: not enough memory to load {model} in {backend} ({one_line(error)}); "
            "run with --memory sequential, or export with --precision int8"
        )
    return QwenImageError(f"{component}: {backend} cannot load {model}: {one_line(error)}; export the bundle again")


def run_failure(
    component: str, sizes: Mapping[str, int], backend: str, error: Exception, on_device: bool = False
) -> QwenImageError:
    """The error of a run that failed in `backend`, in one line with the sizes of the call; see `load_failure`."""
    call = ", ".join(f"{name}={size}" for name, size in sizes.items())
    if is_memory(error):
        return (OutOfDeviceMemory if on_device else QwenImageError)(
            f"{component}: {backend} has not enough memory for {call} ({one_line(error)}); "
            "ask for a smaller size, fewer images, or --memory sequential (qwen-image plan --size tells what one takes)"
        )
    return QwenImageError(f"{component}: the run in {backend} failed for {call}: {one_line(error)}")


def closed(component: str) -> QwenImageError:
    """The error of running an engine after `close`."""
    return QwenImageError(f"{component}: this engine is closed; load it again")


def one_line(error: Exception) -> str:
    """An error's text without line breaks and without the source lines of the C++ that raised it."""
    return " ".join(_SOURCE_LINES.sub(" ", str(error)).split()) or type(error).__name__


def pass_interruption(error: BaseException) -> None:
    """Raise KeyboardInterrupt where `error` is what an extension module made of one."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        cause = cause.__cause__ or cause.__context__


def is_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    return isinstance(error, MemoryError | OutOfDeviceMemory) or any(
        word in str(error).lower() for word in _OUT_OF_MEMORY
    )
