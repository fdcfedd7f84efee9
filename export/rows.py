"""Tokens as rows: (batch, tokens, channels) seen as (batch * tokens, channels), which is what a Gemm multiplies."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from qwen_image_engine.export.constants import add_constant
from qwen_image_engine.export.sizes import axes, runtime_shape
import numpy as np

# Elementwise on any shape, or along the last axis alone.
_ROWWISE = frozenset({"Add", "Mul", "Sub", "Div", "Sigmoid", "Tanh", "Gelu", "LayerNormalization", "RMSNormalization"})


def to_rows(graph: ir.Graph, before: ir.Node, value: ir.Value) -> ir.Value:
    """`value` (..., channels) as (rows, channels) for `before`; itself where it has two axes."""
    shape = axes(value)
    assert shape is not None and isinstance(shape[-1], int)
    if len(shape) == 2:
        return value
    node = ir.node("Reshape", [value, add_constant(graph, f"rows_{shape[-1]}", np.array([-1, shape[-1]]))])
    rows = 1 if all(axis == 1 for axis in shape[:-1]) else _product(shape[:-1])
    output = node.outputs[0]
    output.type, output.shape = value.type, ir.Shape([rows, shape[-1]])
    graph.insert_before(before, node)
    return output


def from_rows(graph: ir.Graph, node: ir.Node, rows: ir.Value) -> None:
    """Put `rows` in the place of `node`'s one output, in that output's shape, and remove `node`."""
    old = node.outputs[0]
    shape = axes(old)
    assert shape is not None
    if len(shape) == 2:
        new = rows
    else:
        reshape = ir.node("Reshape", [rows, runtime_shape(graph, shape)])
        graph.insert_before(node, reshape)
        new = reshape.outputs[0]
        rows.type, rows.shape = old.type, ir.Shape([_product(shape[:-1]), shape[-1]])
    new.type, new.shape = old.type, old.shape
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    name = old.name
    graph.remove(node, safe=True)
    new.name = name
