"""Tokens as rows: (batch, tokens, channels) seen as (batch * tokens, channels), which is what a Gemm multiplies."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from qwen_image_engine.export.graph.nodes import add_constant, constant
from qwen_image_engine.export.graph.shapes import Axes, axes, runtime_shape, width

# Elementwise, or along the last axis alone.
_ROWWISE = frozenset(
    {"Add", "Cast", "Mul", "Sub", "Div", "Sigmoid", "Tanh", "Gelu", "LayerNormalization", "RMSNormalization", "Split"}
)


class KeepRows(InPlacePass):
    """Every target: what lies between two Gemms works on their rows, so that the Reshapes between them cancel.

    A Reshape costs no copy, but an engine's dispatch; a block has seven linear layers and would have fourteen.
    """

    def call(self, model: ir.Model) -> PassResult:
        """In the order of the graph, so that rows spread from the first Gemm on."""
        modified = False
        for node in list(model.graph):
            if node.domain == "" and node.op_type in _ROWWISE:
                modified |= _on_rows(model.graph, node)
        return PassResult(model, modified)


def to_rows(graph: ir.Graph, before: ir.Node, value: ir.Value) -> ir.Value:
    """`value` (..., channels) as (rows, channels) for `before`; itself where it has two axes."""
    channels, shape = width(value), axes(value) or []
    if len(shape) == 2:
        return value
    target = add_constant(graph, f"shape_n_{channels}", np.array([-1, channels], dtype=np.int64))
    node = ir.node("Reshape", [value, target])
    node.outputs[0].type, node.outputs[0].shape = value.type, _rows_shape(shape)
    graph.insert_before(before, node)
    return node.outputs[0]


def from_rows(graph: ir.Graph, before: ir.Node, rows: ir.Value, old: ir.Value) -> None:
    """Put `rows` (rows, channels), in the shape of `old`, in the place of `old`; they are computed before `before`."""
    shape = axes(old)
    assert shape is not None
    new = rows
    if len(shape) != 2:
        reshape = ir.node("Reshape", [rows, runtime_shape(graph, shape)])
        graph.insert_before(before, reshape)
        new = reshape.outputs[0]
        rows.type, rows.shape = old.type, _rows_shape(shape)
    new.type, new.shape = old.type, old.shape
    if old.is_graph_output():
        new.name, old.name = old.name, None
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def _on_rows(graph: ir.Graph, node: ir.Node) -> bool:
    shape = axes(node.outputs[0])
    if shape is None or len(shape) != 3 or not _along_last_axis(node, len(shape)):
        return False
    known = [_known_rows(value) for value in node.inputs]
    if all(rows is None for rows in known):
        return False
    inputs: list[ir.Value | None] = []
    for value, rows in zip(node.inputs, known, strict=True):
        if value is None or _broadcasts_to_rows(value):
            inputs.append(value)
        elif rows is not None:
            inputs.append(rows)
        elif _tokens(value) == shape[:2]:
            inputs.append(to_rows(graph, node, value))
        else:
            return False
    attributes = [ir.AttrInt64("axis", -1) if name == "axis" else a for name, a in node.attributes.items()]
    new = ir.Node(node.domain, node.op_type, inputs, attributes, num_outputs=len(node.outputs))
    graph.insert_before(node, new)
    for rows, old in zip(new.outputs, node.outputs, strict=True):
        from_rows(graph, node, rows, old)
    graph.remove(node, safe=True)
    return True


def _along_last_axis(node: ir.Node, rank: int) -> bool:
    default = 0 if node.op_type == "Split" else -1
    return node.attributes.get_int("axis", default) in (-1, rank - 1)


def _known_rows(value: ir.Value | None) -> ir.Value | None:
    """The rows that `value` is a Reshape of."""
    producer = value.producer() if value is not None else None
    if value is None or producer is None or producer.op_type != "Reshape" or producer.inputs[0] is None:
        return None
    before, after = axes(producer.inputs[0]), axes(value)
    if before is None or after is None or len(before) != 2 or len(after) != 3 or before[-1] != after[-1]:
        return None
    return producer.inputs[0]


def _broadcasts_to_rows(value: ir.Value) -> bool:
    array = constant(value)
    shape = array.shape if array is not None else value.shape
    return shape is not None and len(shape) <= 1


def _tokens(value: ir.Value) -> Axes | None:
    shape = axes(value)
    return shape[:2] if shape is not None and len(shape) == 3 and isinstance(shape[-1], int) else None


def _rows_shape(shape: Axes) -> ir.Shape:
    lead = [axis for axis in shape[:-1] if axis != 1]
    rows = 1 if not lead else "*".join(map(str, lead))
    return ir.Shape([rows, shape[-1]])
