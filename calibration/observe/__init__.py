"""Activation statistics: runs of the reference, observed, and the file that keeps them."""

from typing import TYPE_CHECKING

from qwen_image_engine.engines.core.entries import lazy_names

if TYPE_CHECKING:
    from qwen_image_engine.calibration.observe.record import Calibration as Calibration

__all__ = ["Calibration"]

__getattr__ = lazy_names(__name__, {"Calibration": "calibration.observe.record"})
