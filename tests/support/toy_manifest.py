"""The manifest of a bundle for TensorRT of the toy networks in `numpy_engines`."""

from typing import Any

from qwen_image_engine.runtime.bundle.manifest import Manifest
from qwen_image_engine.runtime.bundle.manifest_entries import CheckpointEntry, Tool
from tests.support.numpy_engines import DIMS, FACTS


def toy_manifest(**values: Any) -> Manifest:
    """A manifest for tests that are about something else; `values` are those that a test chooses."""
    common: dict[str, Any] = {
        "tool": Tool("0.1.0", "ab"),
        "target": "tensorrt",
        "precision": "bf16",
        "weights": "copy",
        "checkpoint": CheckpointEntry("toy", "/models/toy", "other", "cd", "ef"),
        "dims": DIMS,
        "facts": FACTS,
    }
    return Manifest(**{**common, **values})
