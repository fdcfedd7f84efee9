"""Lowering pass for the norm over channels of the VAE."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from qwen_image_engine.export.graph.nodes import constant


class SumOfSquares(InPlacePass):
    """Lowering pass for every target: ReduceSum(x^2) becomes ReduceSumSquare(x).

    ReduceSumSquare writes no tensor of squares.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite the sums of squares; squares that something else reads stay."""
        modified = False
        for node in list(model.graph):
            power = node.inputs[0].producer() if node.op_type == "ReduceSum" and node.inputs[0] is not None else None
            if power is None or power.op_type != "Pow" or len(power.outputs[0].uses()) != 1:
                continue
            exponent = constant(power.inputs[1])
            if exponent is None or exponent.size != 1 or exponent.item() != 2:
                continue
            new = ir.Node("", "ReduceSumSquare", [power.inputs[0], *node.inputs[1:]], node.attributes.values())
            model.graph.insert_before(node, new)
            output, old = new.outputs[0], node.outputs[0]
            output.name, output.shape, output.type = old.name, old.shape, old.type
            ir.convenience.replace_all_uses_with(old, output, replace_graph_outputs=True)
            model.graph.remove([node, power], safe=True)
            modified = True
        return PassResult(model, modified)
