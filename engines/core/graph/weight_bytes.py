"""The bytes of the weights that a graph reads from files beside it, from the ONNX file alone.

A file of weights is a network's, whose graphs each read a part of it; a linked file holds more than the graphs read.
The numbers of fields are from onnx.proto.
"""

from __future__ import annotations

from pathlib import Path

from qwen_image_engine.engines.core.protobuf import messages

_MODEL_GRAPH = 7
_GRAPH_INITIALIZER = 5
_TENSOR_EXTERNAL_DATA = 13
_ENTRY_KEY, _ENTRY_VALUE = 1, 2


def weight_bytes(model: Path) -> int:
    """Return the bytes of the external data of a checked graph; data of several initializers count once.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is no ONNX model.
    """
    sizes = {}
    for graph in messages(memoryview(model.read_bytes()), _MODEL_GRAPH):
        for tensor in messages(graph, _GRAPH_INITIALIZER):
            place = {
                _text(entry, _ENTRY_KEY): _text(entry, _ENTRY_VALUE)
                for entry in messages(tensor, _TENSOR_EXTERNAL_DATA)
            }
            if "length" in place:
                sizes[place.get("location"), place.get("offset", "0")] = int(place["length"])
    return sum(sizes.values())


def _text(entry: memoryview, number: int) -> str:
    return b"".join(map(bytes, messages(entry, number))).decode()
