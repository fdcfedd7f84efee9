"""Casts that know what they give."""

from __future__ import annotations

import onnx_ir as ir


def cast(value: ir.Value, dtype: ir.DataType) -> ir.Node:
    """A Cast of `value`, in no graph yet, whose output has its type and shape."""
    node = ir.node("Cast", [value], {"to": dtype})
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(dtype), value.shape
    return node
