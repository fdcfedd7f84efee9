"""Lowering pass: products keep their rows flat from one to the next."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from qwen_image_engine.export.graph.nodes import constant
from qwen_image_engine.export.graph.rows import _tokens, from_rows, to_rows
from qwen_image_engine.export.graph.shapes import axes


class KeepRows(InPlacePass):
    """Lowering pass for every target: nodes between two Gemms work on rows, so that Reshapes between them cancel.

    A Reshape costs no copy, but it costs an engine's dispatch. A block has seven linear layers, and would have fourteen
    Reshapes.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite in the order of the graph, so that rows spread from the first Gemm on."""
        modified = False
        for node in list(model.graph):
            if node.domain == "" and node.op_type in _ROWWISE:
                modified |= _on_rows(model.graph, node)
        return PassResult(model, modified)


# Elementwise, or along the last axis alone.
_ROWWISE = frozenset(
    {"Add", "Cast", "Mul", "Sub", "Div", "Sigmoid", "Tanh", "Gelu", "LayerNormalization", "RMSNormalization", "Split"}
)


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
    """Return the rows that `value` is a Reshape of; None if it is no Reshape of rows."""
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
