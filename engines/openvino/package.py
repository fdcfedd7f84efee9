"""The package openvino."""

from typing import Any

from qwen_image_engine.engines.core.packages import import_package


def openvino() -> Any:
    """Import the package openvino and return it.

    Raises:
        QwenImageError: the package is not installed, or does not load.
    """
    return import_package("openvino", "openvino")
