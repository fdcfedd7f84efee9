"""Weights outside a graph's file, and graphs that take them as inputs, against the package onnx."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from qwen_image_engine.engines.core.dtypes import DTYPES
from qwen_image_engine.engines.core.graph.external_weights import (
    external_weights,
    read_graph,
    with_weights_as_inputs,
)
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
    assert tuple(weight.name for weight in found if weight.is_bindable) == BINDABLE
    assert [weight.name for weight in found if weight.is_scale] == ["scales"]
    assert [weight.name for weight in found if weight.is_kernel] == ["kernels"]
    assert [weight.name for weight in found if weight.is_cast] == ["wide"]


def test_weights_become_inputs_behind_the_others(model: memoryview) -> None:
    weights = [weight for weight in external_weights(model) if weight.is_bindable]
    before = onnx.load_from_string(bytes(model))
    after = onnx.load_from_string(with_weights_as_inputs(model, weights))
    assert [item.name for item in after.graph.input] == ["image", *BINDABLE]
    assert [item.name for item in after.graph.initializer] == [name for name in WEIGHTS if name not in BINDABLE]
    for item in after.graph.input[1:]:
        values = WEIGHTS[item.name]
        assert [axis.dim_value for axis in item.type.tensor_type.shape.dim] == list(values.shape)
        assert item.type.tensor_type.elem_type == DTYPES[values.dtype.name].onnx
    del after.graph.input[1:]
    kept = [item for item in before.graph.initializer if item.name not in BINDABLE]
    del before.graph.initializer[:]
    before.graph.initializer.extend(kept)
    assert after == before  # all else is as it was


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


def test_every_exported_graph_is_whole_with_its_weights_as_inputs(exported: Callable[..., Path]) -> None:
    for path in exported().rglob("*.onnx"):
        model = read_graph(path)
        weights = [weight for weight in external_weights(model) if weight.is_bindable]
        after = onnx.load_from_string(with_weights_as_inputs(model, weights))
        before = onnx.load(path, load_external_data=False)
        assert len(after.graph.input) == len(before.graph.input) + len(weights)
        assert len(after.graph.initializer) == len(before.graph.initializer) - len(weights)
        assert after.graph.node == before.graph.node
