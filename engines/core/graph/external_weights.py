"""The weights of a graph that are in files beside it.

The ONNX file is read in protobuf's wire format, without the package onnx. The numbers of fields are from
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from qwen_image_engine.engines.core.dtypes import DTYPES
from qwen_image_engine.engines.core.files import read_regular
from qwen_image_engine.engines.core.graph.accepted import MAX_GRAPH_BYTES
from qwen_image_engine.engines.core.protobuf import VARINT, Field, fields, messages

_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_NODE_INPUT, _NODE_OPERATOR = 1, 4
_TENSOR_DIMS, _TENSOR_DTYPE, _TENSOR_NAME, _TENSOR_PLACE, _TENSOR_LOCATION = 1, 2, 8, 13, 14
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_EXTERNAL = Field(_TENSOR_LOCATION, VARINT, 1)

_DTYPES = {row.onnx: row for row in DTYPES.values()}
_SCALED, _CONVOLUTIONS, _CASTS = (b"QuantizeLinear", b"DequantizeLinear"), (b"Conv",), (b"Cast",)
_READERS = {**dict.fromkeys((*_SCALED, *_CONVOLUTIONS), 1), **dict.fromkeys(_CASTS, 0)}
"""Index of the scale, of a convolution's kernels, or of what is cast, among the inputs of these operators."""


@dataclass(frozen=True)
class ExternalWeight:
    """A weight of a graph whose bytes are in another file.

    Attributes:
        name: name of the initializer.
        dtype: dtype of the numbers, a name of `engines.core.dtypes`.
        shape: shape of the weight.
        location: path of the file from the graph's folder.
        offset: offset of the weight's first byte in the file.
        is_scale: whether the weight is a scale of quantisation.
        is_kernel: whether a convolution reads the weight.
        is_cast: whether the graph computes in another dtype than that of the file, which an export that links the
            checkpoint's files cannot change.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    location: str
    offset: int
    is_scale: bool
    is_kernel: bool
    is_cast: bool

    @property
    def nbytes(self) -> int:
        """Bytes of the weight."""
        return math.prod(self.shape) * DTYPES[self.dtype].bytes

    @property
    def is_bindable(self) -> bool:
        """Whether a plan can take the weight as an input: a matrix or a table.

        Vectors and scales are small, and compilers fold them into their code. Kernels of convolutions as inputs cost
        two thirds more kernels, which bring them into the layout that convolutions read, in every run; and a larger
        plan (TensorRT for RTX 1.7.1: 65 and 91 of the encoder of `shapes`). What is cast would take its file's dtype on
        the device, and be cast in every run.
        """
        is_special = self.is_scale or self.is_kernel or self.is_cast
        return not is_special and sum(size > 1 for size in self.shape) > 1


def read_graph(model: Path) -> memoryview:
    """Return the bytes of a graph's file.

    Raises:
        OSError: the file cannot be read, is not regular, or is larger than `MAX_GRAPH_BYTES`.
    """
    return memoryview(read_regular(model, MAX_GRAPH_BYTES))


def external_weights(model: memoryview) -> list[ExternalWeight]:
    """Return the weights of a checked graph that are in other files, in the order of its initializers.

    Raises:
        ValueError: the bytes are no ONNX model, or the place or the dtype of a weight is missing.
    """
    found = []
    for graph in messages(model, _MODEL_GRAPH):
        read = [*_read_by(graph)]
        scales, kernels, cast = (
            {name for operator, name in read if operator in kind} for kind in (_SCALED, _CONVOLUTIONS, _CASTS)
        )
        for tensor in messages(graph, _GRAPH_INITIALIZER):
            if _EXTERNAL in fields(tensor):
                found.append(_weight(tensor, scales, kernels, cast))
    return found


def _weight(
    tensor: memoryview, scales: Collection[str], kernels: Collection[str], cast: Collection[str]
) -> ExternalWeight:
    name = tensor_name(tensor)
    pairs = messages(tensor, _TENSOR_PLACE)
    place = {_text(pair, _ENTRY_KEY): _text(pair, _ENTRY_VALUE) for pair in pairs}
    dtypes = [field.value for field in fields(tensor) if field.number == _TENSOR_DTYPE]
    dtype = next((_DTYPES[value] for value in dtypes if isinstance(value, int) and value in _DTYPES), None)
    if dtype is None or "location" not in place:
        raise ValueError(f"the weight {name!r} has no dtype or no place")
    offset = int(place.get("offset", "0"))
    reads = (name in scales, name in kernels, name in cast)
    return ExternalWeight(name, dtype.name, tuple(_axes(tensor)), place["location"], offset, *reads)


def _axes(tensor: memoryview) -> Iterator[int]:
    """Yield the sizes of a tensor: one field each, or one field with all of them."""
    for field in fields(tensor):
        if field.number != _TENSOR_DIMS:
            continue
        if isinstance(field.value, int):
            yield field.value
            continue
        size = shift = 0
        for byte in tensor[field.value]:
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                yield size
                size = shift = 0


def _read_by(graph: memoryview) -> Iterator[tuple[bytes, str]]:
    """Yield the operator and the name of what it reads, of the nodes of `_READERS`."""
    for node in messages(graph, _GRAPH_NODE):
        data = bytes(node)
        if not any(operator in data for operator in _READERS):  # far faster than to read every node
            continue
        for operator in map(bytes, messages(node, _NODE_OPERATOR)):
            if operator in _READERS:
                yield operator, bytes([*messages(node, _NODE_INPUT)][_READERS[operator]]).decode()


def tensor_name(tensor: memoryview) -> str:
    """Return the name of a tensor of a graph."""
    return _text(tensor, _TENSOR_NAME)


def _text(message: memoryview, number: int) -> str:
    return b"".join(map(bytes, messages(message, number))).decode()
