"""Which weights a plan without weights is without, from the ONNX file: a build needs no onnx.

An ONNX file is a protobuf message (https://protobuf.dev/programming-guides/encoding); the numbers of its fields are
those of onnx.proto, and weights in files are small there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_Message = memoryview

_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_NODE_INPUT, _NODE_OPERATOR = 1, 4
_TENSOR_NAME, _TENSOR_LOCATION = 8, 14
_EXTERNAL = 1

_SCALED = (b"QuantizeLinear", b"DequantizeLinear")
_SCALE = 1
"""Index among their inputs."""


def weights_left_out(model: Path) -> list[str]:
    """Names of the weights in files but for scales of quantisation, which TensorRT has to know when it builds."""
    weights: list[str] = []
    scales: set[str] = set()
    for graph in _messages(memoryview(model.read_bytes()), _MODEL_GRAPH):
        for tensor in _messages(graph, _GRAPH_INITIALIZER):
            if (_TENSOR_LOCATION, _EXTERNAL) in _fields(tensor):
                weights += map(_text, _messages(tensor, _TENSOR_NAME))
        for node in _messages(graph, _GRAPH_NODE):
            if any(operator in _SCALED for operator in map(bytes, _messages(node, _NODE_OPERATOR))):
                scales.add(_text(list(_messages(node, _NODE_INPUT))[_SCALE]))
    return sorted(set(weights) - scales)


def _messages(data: _Message, wanted: int) -> Iterator[_Message]:
    return (value for field, value in _fields(data) if field == wanted and isinstance(value, memoryview))


def _text(data: _Message) -> str:
    return bytes(data).decode()


def _fields(data: _Message) -> Iterator[tuple[int, int | _Message]]:
    """Number and value of each field; numbers of fixed width, which none of those here has, as their bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value: int | _Message
            value, at = _varint(data, at)
        else:
            size, at = _varint(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
            value, at = data[at : at + size], at + size
        yield key >> 3, value


def _varint(data: _Message, at: int) -> tuple[int, int]:
    """The number at `at`, seven bits a byte, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at
