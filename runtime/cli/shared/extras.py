"""The packages that only some verbs need, and the error of a missing package."""

from collections.abc import Iterator
from contextlib import contextmanager

from qwen_image_engine.engines.core.errors import QwenImageError, is_memory, one_line, pass_interruption
from qwen_image_engine.engines.core.versions import unsupported_version
from qwen_image_engine.runtime.system.machine import package_versions

EXPORT_PACKAGES = ("torch", "onnx", "onnx-ir", "onnxscript", "safetensors", "filelock")
INSTALL = "pip install 'qwen-image-engine[export]'"
SERVE_PACKAGES = ("starlette", "uvicorn", "python_multipart", "prometheus_client", "anyio", "h11")
INSTALL_SERVE = "pip install 'qwen-image-engine[serve]'"


@contextmanager
def export_packages() -> Iterator[None]:
    """Turn a missing package of the extra `export` into an error that names the extra.

    Raises:
        QwenImageError: a package of the extra is older than supported; or a package that the block imports is not
            installed or cannot be loaded.
    """
    for name, found in package_versions().items():
        fault = unsupported_version(name, found) if found and name in EXPORT_PACKAGES else None
        if fault is not None and fault.older:
            raise QwenImageError(str(fault))
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package.replace("_", "-") not in EXPORT_PACKAGES:
            raise
        raise QwenImageError(
            f"{package} is not installed, and plan, export, calibrate and verify need it; install it with: {INSTALL}"
        ) from error
    except (ImportError, OSError) as error:
        pass_interruption(error)
        if is_memory(error):
            raise
        raise QwenImageError(
            f"the packages of plan, export, calibrate and verify do not load ({one_line(error)}); "
            f"install them again: {INSTALL}"
        ) from error


@contextmanager
def serve_packages() -> Iterator[None]:
    """Turn a missing package of the extra `serve` into an error that names the extra.

    Raises:
        QwenImageError: a package that the block imports is not installed or cannot be loaded.
    """
    try:
        yield
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package not in SERVE_PACKAGES:
            raise
        fault = "is not installed" if isinstance(error, ModuleNotFoundError) else f"does not load ({one_line(error)})"
        raise QwenImageError(f"{package} {fault}, and serve needs it; install it with: {INSTALL_SERVE}") from error
