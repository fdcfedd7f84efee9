"""Weights outside a graph's file, against the package onnx."""

from pathlib import Path

import onnx
import pytest

from qwen_image_engine.engines.core.graph.external_weights import external_weights
from tests.support.bound_graph import BINDABLE, WEIGHTS, bound_graph, write_weights


@pytest.fixture
def model(tmp_path: Path) -> memoryview:
    write_weights(tmp_path / "weights.safetensors")
    return memoryview(bound_graph("step", tmp_path / "weights.safetensors"))


def test_places_and_kinds(model: memoryview) -> None:
    found = external_weights(model)
    assert [weight.name for weight in found] == list(WEIGHTS)
    for weight in found:
        values = WEIGHTS[weight.name]
        assert (weight.dtype, weight.shape, weight.nbytes) == (values.dtype.name, values.shape, values.nbytes)
        assert weight.location == "weights.safetensors"
    assert [weight.name for weight in found if weight.is_bindable] == [*"+".join(BINDABLE).split("+")]
    assert [weight.name for weight in found if weight.is_scale] == ["scales"]
    assert [weight.name for weight in found if weight.is_kernel] == ["kernels"]
    assert [weight.name for weight in found if weight.is_cast] == ["wide"]


def test_packed_and_separate_sizes_are_read() -> None:
    tensor = onnx.TensorProto(name="a", data_type=1, data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="weights")
    body = tensor.SerializeToString()
    large = 300
    separate = b"\x08" + bytes([large & 0x7F | 0x80, large >> 7]) + b"\x08\x05"
    packed = b"\x0a\x03" + bytes([large & 0x7F | 0x80, large >> 7, 5])
    for axes in (separate, packed):
        graph = b"\x2a" + bytes([len(body + axes)]) + body + axes
        (found,) = external_weights(memoryview(b"\x3a" + bytes([len(graph)]) + graph))
        assert (found.shape, found.offset) == ((300, 5), 0)


@pytest.mark.parametrize("data", [b"\xff", b"\x3a\x7f"])
def test_what_is_no_model(data: bytes) -> None:
    with pytest.raises(ValueError, match="byte"):
        external_weights(memoryview(data))
