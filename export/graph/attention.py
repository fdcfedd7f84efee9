"""The RMS norm that produces the queries of an Attention node."""

from __future__ import annotations

import onnx_ir as ir


def query_norm(attention: ir.Node) -> ir.Node | None:
    """Return the node that multiplies an Attention's queries by the weight of their RMS norm, its second input.

    It is an RMSNormalization, or the last product of a norm whose mean `JointSquareMean` has taken out. None if the
    queries come from no norm, or if another node reads the values on the way.
    """
    value = attention.inputs[0]
    while value is not None and (len(value.uses()) == 1 or _is_sliced(value)):
        node = value.producer()
        if node is None or node.op_type == "RMSNormalization" or _is_norm_apart(node):
            return node
        if node.op_type not in _LINEAR:
            return None
        value = node.inputs[0]
    return None


# Operators that a factor passes through. Rounding to codes does not change which norm the queries come from.
_LINEAR = frozenset({"Transpose", "Reshape", "Cast", "RotaryEmbedding", "Slice", "QuantizeLinear", "DequantizeLinear"})


def _is_norm_apart(node: ir.Node) -> bool:
    """Return whether a node is x * (1 / sqrt(mean(x^2) + eps)) * weight, with one root for each head of a token."""
    unit = node.inputs[0].producer() if node.op_type == "Mul" and node.inputs[0] is not None else None
    root = unit.inputs[1] if unit is not None and unit.op_type == "Mul" else None
    return root is not None and root.shape is not None and len(root.shape) == 4 and root.shape[-1] == 1


def _is_sliced(value: ir.Value) -> bool:
    """Return whether only Slices read a value, each for an attention of its own."""
    return all(use.node.op_type == "Slice" for use in value.uses())
