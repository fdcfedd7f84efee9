"""The package openvino, without its telemetry."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from qwen_image_engine.engines.core.packages import check_supported, import_package

_TELEMETRY = "openvino_telemetry"


def openvino() -> Any:
    """Import the package openvino and return it.

    Raises:
        QwenImageError: the package is not installed, does not load, or is older than supported.
    """
    with _without_telemetry():
        package = import_package("openvino", "openvino")
    check_supported(package)
    return package


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
