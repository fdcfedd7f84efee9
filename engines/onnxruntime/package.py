"""The package onnxruntime, for CPUs or for CUDA, without its telemetry."""

import os
from typing import Any

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.core.packages import CUDA_PROVIDER, check_supported, import_package
from qwen_image_engine.engines.cuda.compute_capability import BF16, ONNXRUNTIME_KERNELS, runs_onnxruntime
from qwen_image_engine.engines.cuda.driver import device_info

TELEMETRY_SWITCH = "ORT_DISABLE_TELEMETRY"
"""Environment variable that switches ONNX Runtime's telemetry off."""

INSTALL_CUDA = (
    "onnxruntime and onnxruntime-gpu hold the same package and must not both be installed: "
    "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'qwen-image-engine[cuda]'"
)
"""Advice to replace an installation without CUDA."""


def onnxruntime() -> Any:
    """Import the package onnxruntime and return it.

    Raises:
        QwenImageError: the package is not installed, does not load, or is older than supported.
    """
    package = _import("cpu")
    check_supported(package)
    return package


def onnxruntime_cuda() -> Any:
    """Import the package onnxruntime, check that it is built for CUDA and for this machine's GPU, and return it.

    Raises:
        QwenImageError: the package is not installed, does not load, is older than supported, or is built without CUDA;
            there is no GPU or driver; or the package has no kernels for the GPU.
    """
    package = _import("cuda")
    if CUDA_PROVIDER not in package.get_available_providers():
        raise QwenImageError(f"onnxruntime {package.__version__} is installed without CUDA; {INSTALL_CUDA}")
    check_supported(package)
    device = device_info()
    if not runs_onnxruntime(device.compute_capability):
        instead = "tensorrt" if float(device.compute_capability) >= BF16 else "cpu"
        raise QwenImageError(
            f"{device.name} has compute capability {device.compute_capability}, and onnxruntime-gpu as it is "
            f"published has kernels for {', '.join(f'{a}.{b}' for a, b in ONNXRUNTIME_KERNELS.items())} and later "
            f"ones of the same major number alone; export with --target {instead}"
        )
    return package


def _import(extra: str) -> Any:
    # From 1.32 on the package's import alone writes a device id and a database below HOME and a file to TMPDIR, and its
    # telemetry sends them. The package reads this variable once, at its import (Privacy.md in the package).
    if not os.environ.get(TELEMETRY_SWITCH):  # a user's own "0" keeps it on
        os.environ[TELEMETRY_SWITCH] = "1"
    return import_package("onnxruntime", extra)
