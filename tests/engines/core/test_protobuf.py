"""Against the package onnx, whose protobuf is not ours."""

import mmap
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qwen_image_engine.engines.core.protobuf import MESSAGE, VARINT, fields, integer_field, message_field, messages

WEIGHTS = np.arange(300, dtype=np.float32)


def model() -> onnx.ModelProto:
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 300]) for name in ("x", "y")]
    node = helper.make_node("Mul", ["x", "w"], ["y"], name="scale", alpha=0.5)
    graph = helper.make_graph([node], "graph", ports[:1], ports[1:], [numpy_helper.from_array(WEIGHTS, "w")])
    return helper.make_model(graph, ir_version=10, producer_version="ä" * 200, model_version=2**62)


def test_fields_are_those_that_onnx_wrote() -> None:
    data = memoryview(model().SerializeToString())
    found = {field.number: field for field in fields(data)}
    numbers = {name: item.number for name, item in onnx.ModelProto.DESCRIPTOR.fields_by_name.items()}
    assert found[numbers["ir_version"]][1:] == (VARINT, 10)
    assert found[numbers["model_version"]][1:] == (VARINT, 2**62)
    place = found[numbers["producer_version"]].value
    assert isinstance(place, slice)
    assert bytes(data[place]).decode() == "ä" * 200
    assert found[numbers["graph"]].kind == MESSAGE
    (graph,) = messages(data, numbers["graph"])
    (tensor,) = messages(graph, onnx.GraphProto.DESCRIPTOR.fields_by_name["initializer"].number)
    (raw,) = messages(tensor, onnx.TensorProto.DESCRIPTOR.fields_by_name["raw_data"].number)
    np.testing.assert_array_equal(np.frombuffer(raw, np.float32), WEIGHTS)
    (node,) = messages(graph, onnx.GraphProto.DESCRIPTOR.fields_by_name["node"].number)
    (attribute,) = messages(node, onnx.NodeProto.DESCRIPTOR.fields_by_name["attribute"].number)
    value = {field.number: field for field in fields(attribute)}[2]  # a float, which has a fixed width
    assert isinstance(value.value, slice)
    assert np.frombuffer(attribute[value.value], np.float32) == 0.5


def test_a_mapped_file_has_the_same_fields(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(model().SerializeToString())
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        assert list(fields(data)) == list(fields(path.read_bytes()))


@pytest.mark.parametrize("text", ["a", "ä" * 100, "x" * 20000])
def test_onnx_reads_what_is_written(text: str) -> None:
    for number in (0, 1, 127, 128, 2**31, 2**63 - 1):
        data = integer_field(1, number) + message_field(2, text.encode()) + integer_field(5, number)
        found = onnx.ModelProto.FromString(data)
        assert (found.ir_version, found.producer_name, found.model_version) == (number, text, number)
        assert found.SerializeToString() == data


def test_a_field_number_of_two_bytes() -> None:
    data = onnx.TensorProto(data_location=1).SerializeToString()
    assert data == integer_field(14, 1)
    entry = onnx.ModelProto.DESCRIPTOR.fields_by_name["functions"].number
    assert entry > 15
    assert onnx.ModelProto.FromString(message_field(entry, message_field(1, b"f"))).functions[0].name == "f"


def test_what_is_cut_short_is_a_value_error() -> None:
    data = model().SerializeToString()
    whole = {field.value.stop for field in fields(data) if isinstance(field.value, slice)}
    for length in range(0, len(data), 7):
        if length in {0, *whole}:
            continue
        try:
            read = list(fields(data[:length]))
        except ValueError:
            continue
        assert read == list(fields(data))[: len(read)]  # cut between two fields


@pytest.mark.parametrize("data", [b"\x0b", b"\xff" * 11 + b"\x00", b"\x0a\x05abc", b"\x09\x00", b"\x08", b"\x80"])
def test_what_is_no_message_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"field|integer"):
        list(fields(data))
