"""The package openvino and its one `Core`."""

import ctypes
from functools import cache
from threading import Lock
from typing import Any

from qwen_image_engine.engines.core.packages import import_package

_LOCK = Lock()


def openvino() -> Any:
    """Import the package openvino and return it.

    Raises:
        QwenImageError: the package is not installed, or does not load.
    """
    return import_package("openvino", "openvino")


def core() -> Any:
    """Return the `openvino.Core` of this process, which is never freed. Threads may share it.

    A `Core` gives the thread that loads its CPU plugin another signal stack, and restores the previous one when it is
    freed. The previous one is unmapped if its own `Core` was freed first, and the next signal ends the process with a
    segmentation fault.

    Raises:
        QwenImageError: the package is not installed, or does not load.
        RuntimeError: OpenVINO cannot read its list of plugins.
    """
    with _LOCK:  # `cache` alone would let two threads create one each
        return _core()


@cache
def _core() -> Any:
    created = openvino().Core()
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(created))  # the end of the interpreter frees what modules hold
    return created
