"""A checkpoint in a folder or in the hub's cache, with its configurations and checks."""

from typing import TYPE_CHECKING

from qwen_image_engine.engines.core.entries import lazy_names

if TYPE_CHECKING:
    from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint as Checkpoint

__all__ = ["Checkpoint"]

__getattr__ = lazy_names(__name__, {"Checkpoint": "reference.checkpoint.checkpoint"})
