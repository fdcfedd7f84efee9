"""Imports of the backends' packages. Errors name the supported versions and the command that installs them."""

from importlib import import_module
from typing import Any

from qwen_image_engine.engines.core.errors import QwenImageError, is_memory, one_line, pass_interruption
from qwen_image_engine.engines.core.versions import UnsupportedVersion, unsupported_version

CUDA_PROVIDER = "CUDAExecutionProvider"
"""Name of ONNX Runtime's CUDA backend, which a package has if it was built for CUDA."""


def import_package(module: str, extra: str) -> Any:
    """Import the package `module` and return it. The extra `extra` of this distribution installs it.

    Raises:
        QwenImageError: the package is not installed, or is installed and does not load.
    """
    install = f"pip install 'qwen-image-engine[{extra}]'"
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module:
            raise QwenImageError(f"{module.replace('_', '-')} is not installed; install it with: {install}") from None
        raise QwenImageError(
            f"{module} needs the package {error.name}, which is not installed; install it again with: {install}"
        ) from error
    except (ImportError, OSError) as error:
        pass_interruption(error)
        if is_memory(error):
            raise QwenImageError(f"{module} does not load, because memory ran out ({one_line(error)})") from error
        raise QwenImageError(
            f"{module} is installed and does not load ({one_line(error)}); install it again with: {install}"
        ) from error


def check_supported(package: Any) -> None:
    """Raise if an imported package is older than supported.

    A newer version is tried: `newer_than_supported` describes it for the first error.

    Raises:
        QwenImageError: the package is older than supported.
    """
    fault = _version_fault(package)
    if fault is not None and fault.older:
        raise QwenImageError(str(fault))


def newer_than_supported(package: Any) -> str | None:
    """Return the sentence for an imported package that is newer than supported; None for a supported version."""
    fault = _version_fault(package)
    return None if fault is None or fault.older else str(fault)


def _version_fault(package: Any) -> UnsupportedVersion | None:
    name, version = getattr(package, "__name__", ""), getattr(package, "__version__", "")
    if name == "onnxruntime" and CUDA_PROVIDER in package.get_available_providers():
        name = "onnxruntime-gpu"  # two distributions of one package, each with versions of its own
    return unsupported_version(name, version)
