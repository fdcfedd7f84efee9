"""Casts down and straight back up."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult


class DropRoundTrips(InPlacePass):
    """TensorRT: float32 that is cast down and up again stays float32, as between RMS norm and rotary embedding.

    The reference rounds what each of the two returns; without that rounding they can become one kernel.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Casts down stay for whatever else reads them."""
        modified = False
        for node in list(model.graph):
            source = _source(node)
            if source is not None and source.dtype == node.outputs[0].dtype == ir.DataType.FLOAT:
                node.outputs[0].replace_all_uses_with(source)
                model.graph.remove(node, safe=True)
                modified = True
        return PassResult(model, modified)


def _source(node: ir.Node) -> ir.Value | None:
    """What a Cast of a Cast reads, None for any other node."""
    down = node.inputs[0].producer() if node.op_type == "Cast" and node.inputs[0] is not None else None
    if down is None or down.op_type != "Cast" or node.outputs[0].is_graph_output():
        return None
    return down.inputs[0]
