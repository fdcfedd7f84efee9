"""Linear layers as Gemm, which takes a weight [out, in] as the checkpoint stores it."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from qwen_image_engine.export.rows import from_rows, to_rows


class LinearToGemm(InPlacePass):
    """CPU: MatMul with a transposed weight becomes Gemm(transB=1) on rows flattened to (batch * tokens, channels).

    The other form keeps a Transpose of every weight in the graph, which ONNX Runtime folds into a second copy.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Only products whose right side is a transposed weight are linear layers."""
        modified = False
        for node in list(model.graph):
            transpose = node.inputs[1].producer() if node.op_type == "MatMul" and node.inputs[1] is not None else None
            if transpose is None or transpose.op_type != "Transpose" or node.inputs[0] is None:
                continue
            weight = transpose.inputs[0]
            if weight is None or not weight.is_initializer() or transpose.attributes.get_ints("perm", [1, 0]) != (1, 0):
                continue
            rows = to_rows(model.graph, node, node.inputs[0])
            gemm = ir.node("Gemm", [rows, weight], {"transB": 1})
            model.graph.insert_before(node, gemm)
            from_rows(model.graph, node, gemm.outputs[0], node.outputs[0])
            model.graph.remove(node, safe=True)
            modified = True
        return PassResult(model, modified)
