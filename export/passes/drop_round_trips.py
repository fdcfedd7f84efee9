"""Lowering pass: Casts down and straight back up are removed."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult


class DropRoundTrips(InPlacePass):
    """Lowering pass for GPUs: float32 that is cast down and up again stays float32.

    Such Casts stand between RMS norm and rotary embedding. The reference rounds the result of each of the two. Without
    that rounding they can become one kernel.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Remove the round trips; a Cast down stays if anything else reads it."""
        modified = False
        for node in list(model.graph):
            down = _cast_before(node)
            source = down.inputs[0] if down is not None else None
            if down is None or source is None or not source.dtype == node.outputs[0].dtype == ir.DataType.FLOAT:
                continue
            node.outputs[0].replace_all_uses_with(source)
            model.graph.remove(node, safe=True)
            if not down.outputs[0].uses() and not down.outputs[0].is_graph_output():
                model.graph.remove(down, safe=True)
            modified = True
        return PassResult(model, modified)


def _cast_before(node: ir.Node) -> ir.Node | None:
    """Return the Cast that a Cast reads from; None for any other node, or for an output of the graph."""
    down = node.inputs[0].producer() if node.op_type == "Cast" and node.inputs[0] is not None else None
    if down is None or down.op_type != "Cast" or node.outputs[0].is_graph_output():
        return None
    return down
