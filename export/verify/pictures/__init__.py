"""The distance of pictures from the reference's many-step solution, by solver and evaluations (`verify --pictures`)."""

from typing import TYPE_CHECKING

from qwen_image_engine.engines.core.entries import lazy_names

if TYPE_CHECKING:
    from qwen_image_engine.export.verify.pictures.measure import verify_pictures as verify_pictures
    from qwen_image_engine.export.verify.pictures.settings import Setting as Setting

__all__ = ["Setting", "verify_pictures"]

__getattr__ = lazy_names(
    __name__,
    {"Setting": "export.verify.pictures.settings", "verify_pictures": "export.verify.pictures.measure"},
)
