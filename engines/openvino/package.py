"""The package openvino without its telemetry, and its one `Core`."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

from qwen_image_engine.engines.core.packages import check_supported, import_package

FAILURES = (RuntimeError, MemoryError, ValueError, IndexError, OverflowError)
"""Errors that pybind11 makes of C++ exceptions. OpenVINO's own are RuntimeError, those of the standard library any.

A message that is no UTF-8 is a UnicodeDecodeError, which is a ValueError.
Source: https://pybind11.readthedocs.io/en/stable/advanced/exceptions.html
"""

_TELEMETRY = "openvino_telemetry"

_LOCK = Lock()


def openvino() -> Any:
    """Import the package openvino and return it.

    Raises:
        QwenImageError: the package is not installed, does not load, or is older than supported.
    """
    with _without_telemetry():
        package = import_package("openvino", "openvino")
    check_supported(package)
    return package


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


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Hide the package openvino_telemetry during the block, unless the process has imported it or openvino.

    OpenVINO's import alone writes a client id below HOME and sends an event to a server. It has no switch but CI=true,
    and does without that package if the package is not installed (openvino/tools/ovc/telemetry_utils.py).
    """
    if not sys.modules.keys().isdisjoint((_TELEMETRY, "openvino")):
        yield
        return
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # an import of it raises ModuleNotFoundError
    try:
        yield
    finally:
        del sys.modules[_TELEMETRY]
