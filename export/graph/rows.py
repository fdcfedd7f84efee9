"""Tokens as rows: values (batch, tokens, channels) as (batch * tokens, channels), the shape that a Gemm multiplies."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qwen_image_engine.export.graph.nodes import add_constant
from qwen_image_engine.export.graph.shapes import Axes, axes, runtime_shape, width


def to_rows(graph: ir.Graph, before: ir.Node, value: ir.Value) -> ir.Value:
    """Return `value` (..., channels) as (rows, channels) for `before`; `value` itself if it has two axes."""
    channels, shape = width(value), axes(value) or []
    if len(shape) == 2:
        return value
    target = add_constant(graph, f"shape_n_{channels}", np.array([-1, channels], dtype=np.int64))
    node = ir.node("Reshape", [value, target])
    node.outputs[0].type, node.outputs[0].shape = value.type, _rows_shape(shape)
    graph.insert_before(before, node)
    return node.outputs[0]


def from_rows(graph: ir.Graph, before: ir.Node, rows: ir.Value, old: ir.Value) -> None:
    """Replace `old` by `rows` (rows, channels) in the shape of `old`.

    The rows are computed before `before`.
    """
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


def _tokens(value: ir.Value) -> Axes | None:
    shape = axes(value)
    return shape[:2] if shape is not None and len(shape) == 3 and isinstance(shape[-1], int) else None


def _rows_shape(shape: Axes) -> ir.Shape:
    lead = [axis for axis in shape[:-1] if axis != 1]
    rows = 1 if not lead else "*".join(map(str, lead))
    return ir.Shape([rows, shape[-1]])
