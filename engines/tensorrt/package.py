"""The two packages with TensorRT's API, and the choice of the one that a process uses.

Both packages in one process would load two copies of one compiler, and classes that are derived from the bindings'
(`engines.tensorrt.bindings`) can derive from one of them only.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.core.packages import check_supported, import_package
from qwen_image_engine.engines.cuda import compute_capability
from qwen_image_engine.engines.cuda.driver import device_info

KernelSpecialization = Literal["lazy", "eager"]
"""When TensorRT for RTX compiles kernels for the shapes of a call: "lazy" in the background, while other kernels serve
those shapes, or "eager" before the call runs."""


@dataclass(frozen=True)
class Product:
    """A package with TensorRT's API.

    Attributes:
        engine: name of its backend, of its distribution and of the extra that installs it.
        module: name of the package.
        text: name of the product in messages.
        needs_gpu: whether its objects need a driver when a plan is built.
    """

    engine: str
    module: str
    text: str
    needs_gpu: bool


TENSORRT = Product("tensorrt", "tensorrt", "TensorRT", needs_gpu=True)
TENSORRT_RTX = Product("tensorrt-rtx", "tensorrt_rtx", "TensorRT for RTX", needs_gpu=False)

PRODUCTS: Mapping[str, Product] = {row.engine: row for row in (TENSORRT, TENSORRT_RTX)}
"""The products by the name of their backend."""

_chosen: dict[str, Product] = {}


class OtherProductError(QwenImageError):
    """The error of a product that is asked for in a process that uses the other one."""


def choose(engine: str) -> Any:
    """Import the package of a backend, make it the one that this process uses, and return it.

    Raises:
        QwenImageError: the package is not installed, does not load, or is older than supported; or this process uses
            the other package (`OtherProductError`).
    """
    product = PRODUCTS[engine]
    other = _chosen.get("product", product)
    if other != product and _is_there(product):
        raise OtherProductError(
            f"this process uses {other.text}, and {product.text} cannot be loaded beside it; use it in another process"
        )
    package = import_package(product.module, product.engine)
    check_supported(package)
    _chosen["product"] = product
    return package


def chosen() -> Product:
    """Return the product that this process uses: TensorRT, unless `choose` was called for the other."""
    return _chosen.setdefault("product", TENSORRT)


def installed_version(engine: str) -> str | None:
    """Return the version of a backend's package, which is not imported; None if it is not installed."""
    try:
        return version(engine)
    except PackageNotFoundError:
        return None


def _is_there(product: Product) -> bool:
    return product.module in sys.modules or installed_version(product.engine) is not None


def builder_without_gpu() -> str | None:
    """Return the version of TensorRT for RTX if it builds plans in this process, which needs no GPU; None if not."""
    try:
        return str(choose(TENSORRT_RTX.engine).__version__)
    except QwenImageError:
        return None


def tensorrt() -> Any:
    """Import the package tensorrt, check that there is a GPU, and return it; raises as `_with_gpu` does."""
    return _with_gpu(TENSORRT)


def tensorrt_rtx() -> Any:
    """Import the package tensorrt_rtx, check that there is a GPU, and return it; raises as `_with_gpu` does."""
    return _with_gpu(TENSORRT_RTX)


def _with_gpu(product: Product) -> Any:
    """Import a package that is to run plans, and return it. Without a driver its objects fail or end the process.

    Raises:
        QwenImageError: the package is not installed, does not load, is older than supported, or cannot be loaded
            beside the one that this process uses; or there is no GPU or driver.
    """
    # The device first: where nothing runs, this process may still build with the other product.
    device = device_info() if _is_there(product) else None
    package = choose(product.engine)
    device = device or device_info()
    if product == TENSORRT_RTX and device.compute_capability not in compute_capability.TENSORRT_RTX:
        raise QwenImageError(
            f"{product.text} does not run on {device.name} (compute capability {device.compute_capability}), only on "
            f"{', '.join(compute_capability.TENSORRT_RTX)}; build and run with --engine tensorrt"
        )
    return package
