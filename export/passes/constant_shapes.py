"""Lowering pass: shapes computed in the graph become constants or plain dimensions."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from qwen_image_engine.export.graph.nodes import constant
from qwen_image_engine.export.graph.shapes import axes, readable, reshape_target, runtime_shape, set_reshape_target


class ConstantShapes(InPlacePass):
    """Lowering pass for every target: Reshape, Unsqueeze and Expand need no arithmetic on sizes, if possible."""

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite the nodes whose shapes are known; leave all others as they are."""
        modified = False
        for node in list(model.graph):
            if node.op_type in ("Reshape", "Unsqueeze", "Expand") and constant(node.inputs[0]) is None:
                modified |= _simplify(model.graph, node)
        return PassResult(model, modified)


def _simplify(graph: ir.Graph, node: ir.Node) -> bool:
    source, output = node.inputs[0], node.outputs[0]
    wanted = axes(output)
    if source is None or wanted is None or (node.op_type == "Reshape" and constant(node.inputs[1]) is not None):
        return False
    if node.op_type == "Expand":
        if not readable(graph, wanted):
            return False
        node.replace_input_with(1, runtime_shape(graph, wanted))
        return True
    target = reshape_target(axes(source), wanted)
    if target is None and (node.op_type == "Unsqueeze" or not readable(graph, wanted)):
        return False
    if node.op_type == "Unsqueeze":
        reshape = ir.node("Reshape", [source, node.inputs[1]])
        graph.insert_before(node, reshape)
        new = reshape.outputs[0]
        new.name, new.shape, new.type = output.name, output.shape, output.type
        ir.convenience.replace_all_uses_with(output, new, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        node = reshape
    if target is None:
        node.replace_input_with(1, runtime_shape(graph, wanted))
    else:
        set_reshape_target(node, target)
    return True
