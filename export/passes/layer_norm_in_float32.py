"""Lowering pass: layer norms are in float32, whatever dtype the graph around them has."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from qwen_image_engine.export.graph.nodes import cast


class LayerNormInFloat32(InPlacePass):
    """Lowering pass for TensorRT: a layer norm is float32, with Casts around it.

    ONNX computes statistics in `stash_type`, float32. The parser of TensorRT 11 reads that attribute and drops it,
    because its normalization layer has no precision of its own any more. A norm of bf16 may therefore sum in bf16.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Widen each norm that is not float32 already."""
        norms = [node for node in model.graph if node.op_type == "LayerNormalization"]
        wide = [node for node in norms if node.inputs[0] is not None and node.inputs[0].dtype != ir.DataType.FLOAT]
        for node in wide:
            _widen(model.graph, node)
        return PassResult(model, bool(wide))


def _widen(graph: ir.Graph, norm: ir.Node) -> None:
    output = norm.outputs[0]
    dtype, readers = output.dtype, list(output.uses())
    assert dtype is not None
    assert not output.is_graph_output()
    for index, value in enumerate(norm.inputs):
        if value is not None:
            up = cast(value, ir.DataType.FLOAT)
            graph.insert_before(norm, up)
            norm.replace_input_with(index, up.outputs[0])
    output.type = ir.TensorType(ir.DataType.FLOAT)
    down = cast(output, dtype)
    graph.insert_after(norm, down)
    for use in readers:
        use.node.replace_input_with(use.idx, down.outputs[0])
