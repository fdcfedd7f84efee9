"""Lowering pass: nodes whose inputs are constants become constants."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes import InPlacePass, PassResult

from qwen_image_engine.export.graph.nodes import Array, add_constant, add_initializer, constant


class FoldConstants(InPlacePass):
    """Lowering pass for every target: nodes that depend on constants and known sizes alone are evaluated.

    Constant nodes become initializers. `Shape` of known axes and `CastLike` of a constant count as constants.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Fold in the order of the graph, so that a chain folds in one pass."""
        graph = model.graph
        modified = _lift(graph)
        for node in graph:
            array = _known_shape(node) if node.op_type == "Shape" else _evaluated(node)
            if array is None or array.size > _FOLDED_ELEMENTS:
                continue
            output = node.outputs[0]
            assert output.name is not None
            value = add_constant(graph, f"{output.name}_folded", array)
            output.replace_all_uses_with(value)
            graph.remove(node, safe=True)
            modified = True
        return PassResult(model, modified)


# Attributes of a Constant that hold numbers, and the type of the tensor that they stand for.
_NUMBERS = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}


def _lift(graph: ir.Graph) -> bool:
    """Turn Constant nodes into initializers.

    onnx-ir has a pass that does so. It asks of each Python number what it may be, which is half of the time of a
    lowering.
    """
    found = False
    for node in graph:
        if node.op_type != "Constant" or len(node.attributes) != 1 or node.outputs[0].is_graph_output():
            continue
        ((name, attribute),) = node.attributes.items()
        output = node.outputs[0]
        if name in _NUMBERS:
            tensor: ir.TensorProtocol = ir.Tensor(np.asarray(attribute.value, _NUMBERS[name]), name=output.name)
        elif name == "value":
            tensor = attribute.as_tensor()
        else:
            continue
        assert output.name is not None
        output.replace_all_uses_with(add_initializer(graph, output.name, tensor))
        graph.remove(node, safe=True)
        found = True
    return found


# What is folded is shape arithmetic and scalars; a larger result would only make the file grow.
_FOLDED_ELEMENTS = 8192


def _known_shape(node: ir.Node) -> Array | None:
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if shape is None:
        return None
    start = node.attributes.get_int("start", 0)
    end = node.attributes.get_int("end", len(shape))
    axes = list(shape)[start:end]
    return np.array(axes, dtype=np.int64) if all(isinstance(axis, int) for axis in axes) else None


def _evaluated(node: ir.Node) -> Array | None:
    """Return the value of a node with one output and constant inputs; None for any other node.

    ONNX's reference implementation computes the value.
    """
    if node.domain or len(node.outputs) != 1 or node.outputs[0].is_graph_output() or not node.inputs:
        return None
    if node.op_type == "CastLike":
        array, like = constant(node.inputs[0]), node.inputs[1]
        if array is None or like is None or like.dtype is None or like.dtype == ir.DataType.BFLOAT16:
            return None
        return array.astype(like.dtype.numpy())
    arrays = [constant(value) for value in node.inputs]
    if any(array is None and value is not None for array, value in zip(arrays, node.inputs, strict=True)):
        return None
    proto: onnx.NodeProto = ir.to_proto(node)
    feeds: dict[str, Any] = {
        str(value.name): array for value, array in zip(node.inputs, arrays, strict=True) if value is not None
    }
    (result,) = ReferenceEvaluator(proto).run(None, feeds)
    return result if isinstance(result, np.ndarray) else np.asarray(result)
