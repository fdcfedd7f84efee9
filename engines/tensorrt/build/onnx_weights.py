"""The names of the weights that a stripped plan lacks, read from the ONNX file without the package onnx.

The numbers of fields are from onnx.proto. The file is small: the weights that it names are in other files.
"""

from __future__ import annotations

from pathlib import Path

from qwen_image_engine.engines.core.files import read_regular
from qwen_image_engine.engines.core.graph.accepted import MAX_GRAPH_BYTES
from qwen_image_engine.engines.core.protobuf import VARINT, Field, fields, messages

_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_NODE_INPUT, _NODE_OPERATOR = 1, 4
_TENSOR_NAME, _TENSOR_LOCATION = 8, 14
_EXTERNAL = 1

_SCALED = (b"QuantizeLinear", b"DequantizeLinear")
_SCALE = 1
"""Index of the scale among the operator's inputs."""


def weights_left_out(model: Path) -> list[str]:
    """Return the names of the weights that are in other files.

    Scales of quantisation are not among them: TensorRT needs them when it builds.

    Raises:
        OSError: the file cannot be read, is not regular, or is larger than `MAX_GRAPH_BYTES`.
    """
    weights: list[str] = []
    scales: set[str] = set()
    for graph in messages(memoryview(read_regular(model, MAX_GRAPH_BYTES)), _MODEL_GRAPH):
        for tensor in messages(graph, _GRAPH_INITIALIZER):
            if Field(_TENSOR_LOCATION, VARINT, _EXTERNAL) in fields(tensor):
                weights += map(_text, messages(tensor, _TENSOR_NAME))
        for node in messages(graph, _GRAPH_NODE):
            if any(operator in _SCALED for operator in map(bytes, messages(node, _NODE_OPERATOR))):
                scales.add(_text(list(messages(node, _NODE_INPUT))[_SCALE]))
    return sorted(set(weights) - scales)


def _text(data: memoryview) -> str:
    return bytes(data).decode()
