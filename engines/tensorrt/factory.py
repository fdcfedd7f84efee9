"""TensorRT's own objects, or in words why there is none."""

from collections.abc import Callable
from typing import TypeVar

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.core.failure import one_line
from qwen_image_engine.engines.tensorrt.bindings import Log

_Made = TypeVar("_Made")


def made(what: str, log: Log, make: Callable[[], _Made | None]) -> _Made:
    """What `make` gives.

    A constructor of the bindings raises a TypeError where TensorRT gives it nothing ("pybind11::init(): factory
    function returned nullptr"); a method gives None.

    Raises:
        QwenImageError: so it was; the text has what TensorRT logged.
    """
    log.clear()
    try:
        found = make()
    except TypeError as error:
        raise QwenImageError(f"TensorRT makes no {what}: {log.errors()} ({one_line(error)})") from error
    if found is None:
        raise QwenImageError(f"TensorRT makes no {what}: {log.errors()}")
    return found
