"""Weights of a graph that have no bytes yet."""

from __future__ import annotations

import onnx_ir as ir

UNPLACED = "unplaced"
"""Location of a weight that has no bytes yet: reading one before it is placed fails."""


def unplaced(graph: ir.Graph, name: str, shape: ir.Shape, dtype: ir.DataType) -> ir.Value:
    """A new initializer `name`, to be placed by that name; the graph's own where it has one."""
    if name in graph.initializers:
        return graph.initializers[name]
    value = ir.Value(name=name, shape=shape, type=ir.TensorType(dtype))
    set_unplaced(value, name, shape, dtype)
    graph.register_initializer(value)
    return value


def set_unplaced(value: ir.Value, name: str, shape: ir.Shape, dtype: ir.DataType) -> None:
    """Make `value` a weight of this name, shape and dtype without bytes."""
    value.name, value.type = name, ir.TensorType(dtype)
    value.const_value = ir.ExternalTensor(UNPLACED, None, None, dtype, shape=shape, name=name)
