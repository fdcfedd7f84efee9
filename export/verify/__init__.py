"""Parity of bundles with the fp32 reference (`qwen-image verify`), by `runtime.tools.compare.measures`."""

from typing import TYPE_CHECKING

from qwen_image_engine.engines.core.entries import lazy_names

if TYPE_CHECKING:
    from qwen_image_engine.export.verify.limits import Limit as Limit
    from qwen_image_engine.export.verify.parity import verify as verify
    from qwen_image_engine.export.verify.parity import verify_bundle as verify_bundle

__all__ = ["Limit", "verify", "verify_bundle"]

__getattr__ = lazy_names(
    __name__,
    {"Limit": "export.verify.limits", "verify": "export.verify.parity", "verify_bundle": "export.verify.parity"},
)
