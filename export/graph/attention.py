"""Attention nodes of a graph: the norms that their queries come from."""

from __future__ import annotations

import onnx_ir as ir


def query_norm(attention: ir.Node) -> ir.Node | None:
    """The RMS norm that an Attention's queries come from, None where they come from none."""
    value = attention.inputs[0]
    while value is not None and (len(value.uses()) == 1 or _is_sliced(value)):
        node = value.producer()
        if node is None or node.op_type == "RMSNormalization":
            return node
        if node.op_type not in _LINEAR:
            return None
        value = node.inputs[0]
    return None


# What a factor passes through, and rounding does not change the names of.
_LINEAR = frozenset({"Transpose", "Reshape", "Cast", "RotaryEmbedding", "Slice", "QuantizeLinear", "DequantizeLinear"})


def _is_sliced(value: ir.Value) -> bool:
    """Whether all that reads it are Slices, each for an attention of its own."""
    return all(use.node.op_type == "Slice" for use in value.uses())
