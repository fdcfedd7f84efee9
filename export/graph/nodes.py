"""Constants and Casts of a graph.

Weights have no bytes while a graph is lowered, so no pass folds a node that depends on a weight.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Array = NDArray[Any]


def constant(value: ir.Value | None) -> Array | None:
    """Return the constant array of `value`; None if it is computed at run time, or is a weight."""
    if value is None or value.const_value is None or isinstance(value.const_value, ir.ExternalTensor):
        return None
    return value.const_value.numpy()


def add_constant(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """Return an initializer that holds `array`; add one if the graph has none of that name and content."""
    unique = name
    count = 0
    while unique in graph.initializers:
        found = constant(graph.initializers[unique])
        if found is not None and found.dtype == array.dtype and np.array_equal(found, array):
            return graph.initializers[unique]
        count += 1
        unique = f"{name}_{count}"
    return add_initializer(graph, unique, ir.Tensor(array, name=unique))


def add_initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Return a new initializer of this name, which the graph has not, with the values of `tensor`."""
    shape = ir.Shape(tensor.shape.numpy())
    value = ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def cast(value: ir.Value, dtype: ir.DataType) -> ir.Node:
    """Return a Cast of `value` to `dtype` that is in no graph yet; type and shape of its output are set."""
    node = ir.node("Cast", [value], {"to": dtype})
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(dtype), value.shape
    return node
