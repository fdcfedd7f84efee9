"""The RMS norm that produces the queries of an Attention node."""

from __future__ import annotations

import onnx_ir as ir


def query_norm(attention: ir.Node) -> ir.Node | None:
    """Return the RMS norm that an Attention's queries come from.

    None if they come from no norm, or if another node reads the values on the way.
    """
    value = attention.inputs[0]
    while value is not None and (len(value.uses()) == 1 or _is_sliced(value)):
        node = value.producer()
        if node is None or node.op_type == "RMSNormalization":
            return node
        if node.op_type not in _LINEAR:
            return None
        value = node.inputs[0]
    return None


# Operators that a factor passes through. Rounding to codes does not change which norm the queries come from.
_LINEAR = frozenset({"Transpose", "Reshape", "Cast", "RotaryEmbedding", "Slice", "QuantizeLinear", "DequantizeLinear"})


def _is_sliced(value: ir.Value) -> bool:
    """Return whether only Slices read a value, each for an attention of its own."""
    return all(use.node.op_type == "Slice" for use in value.uses())
