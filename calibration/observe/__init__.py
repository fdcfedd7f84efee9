"""Activation statistics: observed runs of the reference, and the files that store the statistics."""

from typing import TYPE_CHECKING

from qwen_image_engine.engines.core.entries import lazy_names

if TYPE_CHECKING:
    from qwen_image_engine.calibration.observe.record import Calibration as Calibration

__all__ = ["Calibration"]

__getattr__ = lazy_names(__name__, {"Calibration": "calibration.observe.record"})
