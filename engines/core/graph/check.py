"""The check of a graph's file against `accepted.py`, made before an engine reads the file.

The file is read in protobuf's wire format, without the package onnx. A field that exports do not hold is refused:
functions, subgraphs, training, sparse tensors. The numbers of fields are from
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from qwen_image_engine.engines.core.dtypes import DTYPES
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.core.files import read_regular, regular_size
from qwen_image_engine.engines.core.graph import accepted
from qwen_image_engine.engines.core.graph.accepted import MAX_AXIS, MAX_GRAPH_BYTES, MAX_RANK, OPERATORS, Operator
from qwen_image_engine.engines.core.graph.weight_file import StoredTensor, WeightFile
from qwen_image_engine.engines.core.lru_cache import LruCache
from qwen_image_engine.engines.core.protobuf import MESSAGE, VARINT, fields

Message = dict[int, list[int | memoryview]]
"""The values of a message by number of field: integers, or the bytes of texts, messages and fixed numbers."""

_DTYPES = {row.onnx: row for row in DTYPES.values() if row.name in accepted.DTYPES}
_INT64 = DTYPES["int64"].onnx
_INT64_ENDS = (-(1 << 63), (1 << 63) - 1)
_FIXED32 = 5
_EXTERNAL = 1
_LONGEST_TEXT = 60

_NUMBERS, _BYTES = frozenset({VARINT}), frozenset({MESSAGE})
_LISTED = frozenset({VARINT, MESSAGE})
"""Wire types of a list of integers: one field an integer, or one field with all of them."""

_MODEL = {1: _NUMBERS, 2: _BYTES, 3: _BYTES, 4: _BYTES, 5: _NUMBERS, 6: _BYTES, 7: _BYTES, 8: _BYTES, 14: _BYTES}
_GRAPH = dict.fromkeys((1, 2, 5, 10, 11, 12, 13, 16), _BYTES)
_NODE = dict.fromkeys((1, 2, 3, 4, 5, 6, 7, 9), _BYTES)
_ATTRIBUTE = {1: _BYTES, 2: frozenset({_FIXED32}), 3: _NUMBERS, 4: _BYTES, 5: _BYTES, 8: _LISTED, 20: _NUMBERS}
_TENSOR = {1: _LISTED, 2: _NUMBERS, 8: _BYTES, 9: _BYTES, 12: _BYTES, 13: _BYTES, 14: _NUMBERS, 16: _BYTES}
_PAIR = {1: _BYTES, 2: _BYTES}
_OPSET = {1: _BYTES, 2: _NUMBERS}
_VALUE = {1: _BYTES, 2: _BYTES, 3: _BYTES, 4: _BYTES}
_TYPE = {1: _BYTES}
_TENSOR_TYPE = {1: _NUMBERS, 2: _BYTES}
_SHAPE = {1: _BYTES}
_AXIS = {1: _NUMBERS, 2: _BYTES}


def check_graph_file(component: str, model: Path, name: str, weights: Mapping[str, WeightFile]) -> None:
    """Raise if a graph's file holds something that no export holds, or names weights that its bundle does not list.

    Args:
        component: name of the component, for the error.
        model: the graph's file.
        name: name of the graph's file in the bundle, with slashes.
        weights: weight files that the graph may name, by name in the bundle.

    Raises:
        QwenImageError: the file cannot be read, is larger than `MAX_GRAPH_BYTES` or is no ONNX model; or its operators,
            attributes, sizes or weight files are not accepted.
    """
    try:
        size = regular_size(model)
        data = read_regular(model, MAX_GRAPH_BYTES) if size <= MAX_GRAPH_BYTES else None
    except OSError as error:
        raise QwenImageError(f"{component}: cannot read {model}: {error.strerror or error}") from error
    try:
        if data is None:
            raise _Refused(f"{size} bytes, expected {MAX_GRAPH_BYTES} at most")
        folder = str(PurePosixPath(name).parent)
        for place in _checked_places(data):
            _check_place(place, "" if folder == "." else f"{folder}/", weights)
    except ValueError as error:  # also of the protobuf reader
        raise QwenImageError(
            f"{component}: {model} is no graph that this version exports: {error}; export the bundle again"
        ) from error


class _Refused(ValueError):
    """The error that a graph holds something that no export holds. The text says what was found and expected."""


class _Place(NamedTuple):
    """The place of a tensor's bytes, as a graph has it: a file beside the graph's, and the bytes there."""

    location: str
    length: int
    wanted: StoredTensor


_places: LruCache[bytes, tuple[_Place, ...]] = LruCache(64)
"""The places in graphs that have passed, by the graph's sha256: a verb opens a bundle several times."""


def _checked_places(data: bytes) -> tuple[_Place, ...]:
    """Check what a graph holds by itself, and return the places of its tensors in other files.

    Raises:
        ValueError: the graph is no `ModelProto`, or holds something that no export holds.
    """

    def check() -> tuple[_Place, ...]:
        checked = _Check()
        checked.model(memoryview(data))
        return tuple(checked.places)

    return _places.get_or_make(hashlib.sha256(data).digest(), check)


def _check_place(place: _Place, prefix: str, weights: Mapping[str, WeightFile]) -> None:
    """Raise if the place of a tensor's bytes is not where a listed weight file has such a tensor.

    Args:
        place: place that a graph has.
        prefix: name of the graph's folder in the bundle, with a slash, or "".
        weights: weight files that the graph may name, by name in the bundle.
    """
    location, length, wanted = place
    file = weights.get(prefix + location)
    if file is None:
        raise _Refused(
            f"the tensor {_shown(wanted.name)} is in the file {_shown(location)}, which the manifest does not list "
            "among the component's weights"
        )
    if length != wanted.nbytes:
        raise _Refused(
            f"the tensor {_shown(wanted.name)} has {length} bytes of {_shown(location)}, expected {wanted.nbytes}"
        )
    if not file.holds(wanted):
        found = file.at(wanted.offset)
        raise _Refused(
            f"the tensor {_shown(wanted.name)}, {wanted.dtype} {_shown([*wanted.shape])}, is at byte {wanted.offset} "
            f"of {_shown(location)}, whose header has {_described_tensor(found)} there"
        )


class _Check:
    """The check of one graph. Types and attributes repeat, so each form is checked once.

    Attributes:
        places: places of the tensors in other files, in the graph's order.
    """

    def __init__(self) -> None:
        self.places: list[_Place] = []
        self._seen: set[tuple[str, bytes]] = set()

    def model(self, data: memoryview) -> None:
        """Check a `ModelProto`."""
        model = _read(data, _MODEL, "the model")
        versions = set(model.get(1, ()))
        if not versions or not versions <= accepted.IR_VERSIONS:
            raise _Refused(f"IR version {_listed(versions)}, expected {_listed(accepted.IR_VERSIONS)}")
        for item in _messages(model, 8):
            opset = _read(item, _OPSET, "an opset")
            domain, version = _text(opset, 1), _last(opset, 2)
            if version not in accepted.OPSETS.get(domain, ()):
                raise _Refused(f"opset {version} of the domain {_shown(domain)}, which exports do not use")
        graphs = _messages(model, 7)
        if len(graphs) != 1:
            raise _Refused(f"{len(graphs)} graphs, expected one")
        self._graph(graphs[0])

    def _graph(self, data: memoryview) -> None:
        graph = _read(data, _GRAPH, "the graph")
        written = set()
        for item in _messages(graph, 5):
            written.add(self._tensor(item))
        for number in (11, 12, 13):
            for item in _messages(graph, number):
                value = _read(item, _VALUE, "a value")
                if number == 11:
                    written.add(_text(value, 1))
                for kind in _messages(value, 2):
                    if ("", form := bytes(kind)) not in self._seen:
                        _check_type(kind, _text(value, 1))
                        self._seen.add(("", form))
        for item in _messages(graph, 1):
            self._node(item, written)

    def _node(self, data: memoryview, written: set[str]) -> None:
        """Check a node, which reads values of `written` alone, and add its outputs to them: no graph has a circle."""
        node = _read(data, _NODE, "a node")
        domain, name = _text(node, 7), _text(node, 4)
        operator = OPERATORS.get((domain, name))
        if operator is None:
            full = f"{domain}::{name}" if domain else name
            raise _Refused(f"the operator {_shown(full)}, which exports do not hold")
        inputs, outputs = _texts(node, 1), _texts(node, 2)
        for side, names, (least, most) in (("inputs", inputs, operator.inputs), ("outputs", outputs, operator.outputs)):
            if not least <= len(names) <= most:
                raise _Refused(f"{name} with {len(names)} {side}, expected {least} to {most}")
        for value in inputs:
            if value and value not in written:
                raise _Refused(f"{name} reads {_shown(value)}, which nothing before it writes")
        for value in outputs:
            if value in written:
                raise _Refused(f"{name} writes {_shown(value)}, which is there already")
            written.add(value)
        for attribute in _messages(node, 5):
            if (name, form := bytes(attribute)) not in self._seen:
                self._attribute(attribute, operator)
                self._seen.add((name, form))

    def _attribute(self, data: memoryview, operator: Operator) -> None:
        attribute = _read(data, _ATTRIBUTE, f"an attribute of {operator.name}")
        name = _text(attribute, 1)
        known = operator.attributes.get(name)
        if known is None:
            raise _Refused(f"{operator.name} with the attribute {_shown(name)}, which exports do not use")
        where = f"{operator.name}.{name}"
        if 2 in attribute and not isinstance(known, tuple):
            raise _Refused(f"{where} is a float, which exports do not use")
        integers = [*map(_signed, attribute.get(3, ())), *_integers(attribute, 8)]
        if len(integers) > 2 * MAX_RANK:
            raise _Refused(f"{where} of {len(integers)} integers, expected {2 * MAX_RANK} at most")
        values: list[float | bytes] = [
            *integers,
            *_floats(attribute),
            *(bytes(text) for text in _messages(attribute, 4)),
        ]
        for value in values:
            if not _is_accepted(value, known):
                raise _Refused(f"{where} is {_shown(value)}, expected {_described(known)}")
        for tensor in _messages(attribute, 5):
            if known != "tensor":
                raise _Refused(f"{where} is a tensor, which exports do not use")
            self._tensor(tensor, internal=True)

    def _tensor(self, data: memoryview, *, internal: bool = False) -> str:
        """Check a tensor, with its bytes in the file or in a weight file, and return its name."""
        tensor = _read(data, _TENSOR, "a tensor")
        name, dims, dtype = _text(tensor, 8), _integers(tensor, 1), _last(tensor, 2)
        if len(dims) > MAX_RANK or not all(0 <= size <= MAX_AXIS for size in dims):
            raise _Refused(f"the tensor {_shown(name)} has the axes {_shown(dims)}, expected {MAX_AXIS} at most")
        if dtype not in _DTYPES:
            raise _Refused(f"the tensor {_shown(name)} is of the type {dtype}, which exports do not hold")
        expected = math.prod(dims) * _DTYPES[dtype].bytes
        if 13 in tensor or tensor.get(14, [0]) != [0]:
            if internal or 9 in tensor or tensor.get(14) != [_EXTERNAL]:
                raise _Refused(f"the tensor {_shown(name)} is both in the graph and in another file")
            location, offset, length = _read_place(name, _messages(tensor, 13))
            wanted = StoredTensor(name, _DTYPES[dtype].safetensors, tuple(dims), offset, expected)
            self.places.append(_Place(location, length, wanted))
            return name
        stored = _messages(tensor, 9)
        if sum(map(len, stored)) != expected or len(stored) > 1:
            raise _Refused(f"the tensor {_shown(name)} has {sum(map(len, stored))} bytes, expected {expected}")
        if dtype == _INT64 and stored:
            for (value,) in struct.iter_unpack("<q", stored[0]):
                if abs(value) > MAX_AXIS and value not in _INT64_ENDS:
                    raise _Refused(f"the tensor {_shown(name)} holds {value}, expected {MAX_AXIS} at most")
        return name


def _read_place(tensor: str, entries: list[memoryview]) -> tuple[str, int, int]:
    """Return the file, the offset and the length of a tensor's bytes."""
    pairs = [_read(entry, _PAIR, "a place") for entry in entries]
    place = {_text(pair, 1): _text(pair, 2) for pair in pairs}
    if len(place) != len(pairs) or place.keys() != {"location", "offset", "length"}:
        raise _Refused(f"the place of the tensor {_shown(tensor)} is not one location, offset and length")
    if not all(_is_decimal(place[key]) for key in ("offset", "length")):
        raise _Refused(f"the place of the tensor {_shown(tensor)} has an offset or a length that is no number")
    return place["location"], int(place["offset"]), int(place["length"])


def _described_tensor(tensor: StoredTensor | None) -> str:
    if tensor is None:
        return "nothing"
    return f"{_shown(tensor.name)}, {tensor.dtype} {_shown([*tensor.shape])} from byte {tensor.offset},"


def _check_type(data: memoryview, name: str) -> None:
    """Raise if a value is no tensor, or has an axis out of range."""
    for item in _messages(_read(data, _TYPE, f"the type of {_shown(name)}"), 1):
        tensor = _read(item, _TENSOR_TYPE, f"the type of {_shown(name)}")
        if not set(tensor.get(1, ())) <= _DTYPES.keys():
            raise _Refused(f"{_shown(name)} is of the type {_listed(tensor[1])}, which exports do not hold")
        for shape in _messages(tensor, 2):
            axes = _messages(_read(shape, _SHAPE, f"the shape of {_shown(name)}"), 1)
            sizes = [_signed(size) for axis in axes for size in _read(axis, _AXIS, "an axis").get(1, ())]
            if len(axes) > MAX_RANK or not all(0 <= size <= MAX_AXIS for size in sizes):
                raise _Refused(f"{_shown(name)} has the axes {_shown(sizes)}, expected {MAX_AXIS} at most")


def _read(data: memoryview, known: Mapping[int, frozenset[int]], what: str) -> Message:
    """Return the values of a message by number of field.

    Raises:
        ValueError: the bytes are no message, or a field is not `known` with its wire type.
    """
    found: Message = {}
    for number, kind, value in fields(data):
        if number not in known or kind not in known[number]:
            raise _Refused(f"{what} has the field {number}, which exports do not use")
        part = data[value] if isinstance(value, slice) else value
        if number in found:
            found[number].append(part)
        else:
            found[number] = [part]
    return found


def _messages(message: Message, number: int) -> list[memoryview]:
    return [value for value in message.get(number, ()) if isinstance(value, memoryview)]


def _texts(message: Message, number: int) -> list[str]:
    return [str(value, "utf-8") for value in _messages(message, number)]


def _text(message: Message, number: int) -> str:
    """Return a text, "" if there is none. Protobuf takes the last of several, and a reader may take another."""
    if number not in message:
        return ""
    texts = _texts(message, number)
    if len(texts) > 1:
        raise _Refused(f"a text is there {len(texts)} times: {_shown(texts)}")
    return texts[0] if texts else ""


def _last(message: Message, number: int) -> int:
    values = message.get(number, [0])
    if len(values) != 1 or not isinstance(values[0], int):
        raise _Refused(f"the field {number} is there {len(values)} times, expected once")
    return _signed(values[0])


def _integers(message: Message, number: int) -> list[int]:
    """Return a list of integers, of which each has a field, or one field has all."""
    found: list[int] = []
    for value in message.get(number, ()):
        if isinstance(value, int):
            found.append(_signed(value))
        elif len(value) > 10 * 2 * MAX_RANK:
            raise _Refused(f"a list of integers of {len(value)} bytes")
        else:
            found += _unpacked(value)
    return found


def _unpacked(data: memoryview) -> Iterator[int]:
    """Yield the integers of a packed list: as fields, each behind the key of field 1."""
    start = 0
    for index, byte in enumerate(data):
        if byte < 0x80:
            ((_, _, value),) = fields(b"\x08" + bytes(data[start : index + 1]))
            assert isinstance(value, int)
            yield _signed(value)
            start = index + 1
    if start != len(data):
        raise _Refused("a list of integers that is cut short")


def _floats(message: Message) -> list[float]:
    return [struct.unpack("<f", value)[0] for value in _messages(message, 2)]


def _signed(value: int | memoryview) -> int:
    """Return a varint as the int64 that it stands for."""
    assert isinstance(value, int)
    return value - (1 << 64) if value >> 63 else value


def _is_accepted(value: float | bytes, known: accepted.Accepted) -> bool:
    if isinstance(known, range):
        return isinstance(value, int) and value in known
    if isinstance(known, tuple):
        low, high = known
        return isinstance(value, float) and low - 1e-6 * abs(low) <= value <= high + 1e-6 * abs(high)
    return isinstance(known, frozenset) and value in known


def _is_decimal(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 19


def _described(known: accepted.Accepted) -> str:
    if isinstance(known, range):
        return f"{known[0]}" if len(known) == 1 else f"{known[0]} to {known[-1]}"
    if isinstance(known, tuple):
        return f"{known[0]}" if known[0] == known[1] else f"{known[0]} to {known[1]}"
    return "a tensor" if isinstance(known, str) else " or ".join(sorted(map(_shown, known)))


def _listed(values: object) -> str:
    return ", ".join(map(str, sorted(values))) or "none"  # type: ignore[call-overload]


def _shown(value: object) -> str:
    """Return a value as it stands in an error, cut to a length that fits a line."""
    text = repr(value.decode(errors="replace") if isinstance(value, bytes) else value)
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}… ({len(text)} characters)"
