"""The nodes of a graph, read and written in protobuf's wire format, without the package onnx.

The numbers of fields are from https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from qwen_image_engine.engines.core.protobuf import MESSAGE, VARINT, fields, integer_field, message_field

GRAPH_NODE = 1
_INPUT, _OUTPUT, _NAME, _OPERATOR, _ATTRIBUTE, _DOMAIN = 1, 2, 3, 4, 5, 7
_ATTRIBUTE_NAME, _ATTRIBUTE_FLOAT, _ATTRIBUTE_INTEGER, _ATTRIBUTE_TYPE = 1, 2, 3, 20
_INTEGER_TYPE = 2


@dataclass(frozen=True)
class GraphNode:
    """A node of a graph.

    Attributes:
        index: place of the node among the nodes of its graph.
        operator: operator, with its domain and "::" before it if it is not ONNX's own.
        name: name of the node.
        inputs: names of the values that the node reads; "" for one that is left out.
        outputs: names of the values that it makes.
        attributes: numbers by name; None for an attribute that is no number.
    """

    index: int
    operator: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, float | int | None]


def graph_nodes(graph: memoryview) -> Iterator[GraphNode]:
    """Yield the nodes of a graph in order.

    Raises:
        ValueError: the bytes are no graph.
    """
    index = 0
    for field in fields(graph):
        if field.number == GRAPH_NODE and isinstance(field.value, slice):
            yield _node(index, graph[field.value])
            index += 1


def node_message(
    operator: str, name: str, inputs: Sequence[str], outputs: Sequence[str], attributes: Mapping[str, int]
) -> bytes:
    """Return the bytes of a node of ONNX's own operators with integers as attributes, as a field of its graph."""
    texts = ((_INPUT, inputs), (_OUTPUT, outputs), (_NAME, [name]), (_OPERATOR, [operator]))
    written = [message_field(number, text.encode()) for number, found in texts for text in found]
    for key, value in attributes.items():
        number = integer_field(_ATTRIBUTE_INTEGER, value) + integer_field(_ATTRIBUTE_TYPE, _INTEGER_TYPE)
        written.append(message_field(_ATTRIBUTE, message_field(_ATTRIBUTE_NAME, key.encode()) + number))
    return message_field(GRAPH_NODE, b"".join(written))


def _node(index: int, message: memoryview) -> GraphNode:
    texts: dict[int, list[str]] = {_INPUT: [], _OUTPUT: [], _NAME: [], _OPERATOR: [], _DOMAIN: []}
    attributes = {}
    for field in fields(message):
        if field.number in texts and isinstance(field.value, slice):
            texts[field.number].append(bytes(message[field.value]).decode())
        elif field.number == _ATTRIBUTE and isinstance(field.value, slice):
            name, value = _attribute(message[field.value])
            attributes[name] = value
    domain = "".join(texts[_DOMAIN])
    return GraphNode(
        index,
        f"{domain}::" * bool(domain) + "".join(texts[_OPERATOR]),
        "".join(texts[_NAME]),
        tuple(texts[_INPUT]),
        tuple(texts[_OUTPUT]),
        attributes,
    )


def _attribute(message: memoryview) -> tuple[str, float | int | None]:
    name, number = "", None
    for field in fields(message):
        if field.number == _ATTRIBUTE_NAME and field.kind == MESSAGE and isinstance(field.value, slice):
            name = bytes(message[field.value]).decode()
        elif field.number == _ATTRIBUTE_FLOAT and isinstance(field.value, slice):
            number = struct.unpack("<f", message[field.value])[0]
        elif field.number == _ATTRIBUTE_INTEGER and field.kind == VARINT:
            number = field.value
    return name, number
