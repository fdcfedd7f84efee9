"""Initializers of a graph whose external data does not exist yet."""

from __future__ import annotations

import onnx_ir as ir

UNPLACED = "unplaced"
"""Location of external data that does not exist yet: reading a weight fails until it is placed."""


def unplaced(graph: ir.Graph, name: str, shape: ir.Shape, dtype: ir.DataType) -> ir.Value:
    """Return the initializer `name` without bytes; add it if the graph has no initializer of that name.

    `place_weights` finds the external data by that name.
    """
    if name in graph.initializers:
        return graph.initializers[name]
    value = ir.Value(name=name, shape=shape, type=ir.TensorType(dtype))
    set_unplaced(value, name, shape, dtype)
    graph.register_initializer(value)
    return value


def set_unplaced(value: ir.Value, name: str, shape: ir.Shape, dtype: ir.DataType) -> None:
    """Turn `value` into a weight of this name, shape and dtype without bytes."""
    value.name, value.type = name, ir.TensorType(dtype)
    value.const_value = ir.ExternalTensor(UNPLACED, None, None, dtype, shape=shape, name=name)
