"""The export of a checkpoint to a bundle (`qwen-image export`): atomic, and reusing each unchanged part."""

from typing import TYPE_CHECKING

from qwen_image_engine.engines.core.entries import lazy_names

if TYPE_CHECKING:
    from qwen_image_engine.export.bundle.bundle import export_bundle as export_bundle

__all__ = ["export_bundle"]

__getattr__ = lazy_names(__name__, {"export_bundle": "export.bundle.bundle"})
