"""The platform that plans are built for: the builder, its version, and the GPUs."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.engines.cuda import compute_capability
from qwen_image_engine.engines.cuda.driver import DeviceInfo
from qwen_image_engine.engines.plans.entry import BUILDERS
from qwen_image_engine.engines.tensorrt.package import PRODUCTS, TENSORRT, TENSORRT_RTX, Product, installed_version

DEFAULT_CAPABILITIES = ("8.6", "8.9", "12.0")
"""Compute capabilities of GeForce RTX 30, 40 and 50, which one plan is for unless others are asked for."""


@dataclass(frozen=True)
class Platform:
    """The builder of plans and the GPUs that the plans run on.

    Attributes:
        builder: name of the backend that builds the plans and runs them.
        version: version of its package.
        compute_capabilities: compute capabilities of the GPUs, in order.
        gpu: name of the GPU that plans are built on; None if the builder needs none.
        driver: driver version in CUDA's terms; None if the builder needs no driver.
    """

    builder: str
    version: str
    compute_capabilities: tuple[str, ...]
    gpu: str | None = None
    driver: int | None = None

    @classmethod
    def of_device(cls, version: str, facts: DeviceInfo) -> Self:
        """Return the platform of TensorRT, which builds for the GPU of the machine alone."""
        return cls(TENSORRT.engine, version, (facts.compute_capability,), facts.name, facts.driver)

    @property
    def slug(self) -> str:
        """The platform as part of a file name."""
        words = (self.builder, self.version, self.gpu or "", "sm", *self.compute_capabilities, str(self.driver or ""))
        return re.sub(r"[^a-z0-9.]+", "-", " ".join(filter(None, words)).lower())

    def __str__(self) -> str:
        where = f"compute capability {', '.join(self.compute_capabilities)}"
        return f"{PRODUCTS[self.builder].text} {self.version} for {where if self.gpu is None else self.gpu}"


def choose_builder(engine: str | None, chosen_gpus: bool, device: Callable[[], DeviceInfo]) -> Product:
    """Return the product that builds: the one asked for, else the installed one.

    If both are installed, TensorRT builds on a machine with a GPU unless other GPUs are named, and TensorRT for RTX
    otherwise.

    Args:
        engine: name of the backend asked for; None for no wish.
        chosen_gpus: whether the GPUs to build for are named.
        device: function that asks the driver for the GPU's facts.

    Raises:
        UsageError: the backend asked for builds nothing.
        QwenImageError: the product, or both if there is no wish, is not installed.
    """
    if engine is not None:
        if engine not in BUILDERS:
            raise UsageError(f"--engine {engine}: builds no engines; expected {' or '.join(BUILDERS)}")
        builder_version(PRODUCTS[engine])
        return PRODUCTS[engine]
    installed = [product for product in PRODUCTS.values() if installed_version(product.engine) is not None]
    if not installed:
        raise QwenImageError(
            "neither tensorrt-rtx nor tensorrt is installed; for RTX cards, on any machine: "
            "pip install 'qwen-image-engine[tensorrt-rtx]'; for the GPU of this machine: "
            "pip install 'qwen-image-engine[tensorrt]'"
        )
    if len(installed) == 1:
        return installed[0]
    return TENSORRT if not chosen_gpus and _has_gpu(device) else TENSORRT_RTX


def builder_version(product: Product) -> str:
    """Return the version of an installed product. It is not imported, because that loads large libraries.

    Raises:
        QwenImageError: the product is not installed.
    """
    found = installed_version(product.engine)
    if found is None:
        install = f"pip install 'qwen-image-engine[{product.engine}]'"
        raise QwenImageError(f"{product.engine} is not installed; install it with: {install}")
    return found


def chosen_capabilities(capabilities: Sequence[str], least: float | None) -> tuple[str, ...]:
    """Return the compute capabilities to build for, in order, each once.

    Args:
        capabilities: compute capabilities asked for; empty for those of `DEFAULT_CAPABILITIES` that run the graphs.
        least: smallest compute capability that runs the graphs; None if any does.

    Raises:
        UsageError: TensorRT for RTX does not build for one of them.
    """
    unknown = [item for item in capabilities if item not in compute_capability.TENSORRT_RTX]
    if unknown:
        raise UsageError(
            f"--compute-capability {', '.join(unknown)}: TensorRT for RTX builds for "
            f"{', '.join(compute_capability.TENSORRT_RTX)}"
        )
    wanted = capabilities or [item for item in DEFAULT_CAPABILITIES if float(item) >= (least or 0)]
    return tuple(sorted(set(wanted), key=float))


def _has_gpu(device: Callable[[], DeviceInfo]) -> bool:
    try:
        device()
    except QwenImageError:
        return False
    return True
