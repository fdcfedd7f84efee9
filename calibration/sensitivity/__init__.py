"""Sensitivity of linears to quantisation, and the search for a recipe."""

from typing import TYPE_CHECKING

from qwen_image_engine.engines.core.entries import lazy_names

if TYPE_CHECKING:
    from qwen_image_engine.calibration.sensitivity.analysis import analyse as analyse

__all__ = ["analyse"]

__getattr__ = lazy_names(__name__, {"analyse": "calibration.sensitivity.analysis"})
