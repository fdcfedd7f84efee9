"""The package tensorrt, on a machine with a GPU."""

from typing import Any

from qwen_image_engine.engines.core.packages import check_supported, import_package
from qwen_image_engine.engines.cuda.driver import device_info


def tensorrt() -> Any:
    """Import the package tensorrt, check that there is a GPU, and return it.

    Without a driver TensorRT's objects end the process at their first use.

    Raises:
        QwenImageError: the package is not installed, does not load, or is older than supported; or there is no GPU or
            driver.
    """
    package = import_package("tensorrt", "tensorrt")
    check_supported(package)
    device_info()
    return package
