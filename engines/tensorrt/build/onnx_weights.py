"""The names of the weights that a stripped plan lacks, read from the ONNX file without the package onnx."""

from __future__ import annotations

from pathlib import Path

from qwen_image_engine.engines.core.graph.external_weights import external_weights, read_graph


def weights_left_out(model: Path) -> list[str]:
    """Return the names of the weights that are in other files.

    Scales of quantisation are not among them: TensorRT needs them when it builds.

    Raises:
        OSError: the file cannot be read, is not regular, or is larger than `MAX_GRAPH_BYTES`.
        ValueError: the file is no ONNX model.
    """
    return sorted({weight.name for weight in external_weights(read_graph(model)) if not weight.is_scale})
