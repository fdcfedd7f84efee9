"""Lowering pass: linear layers become Gemm, which takes a weight [out, in] as the checkpoint stores it."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from qwen_image_engine.export.graph.rows import from_rows, to_rows


class LinearToGemm(InPlacePass):
    """Lowering pass for every target: MatMul with a transposed weight becomes Gemm(transB=1) on rows.

    Rows are (batch * tokens, channels). A MatMul would keep a Transpose of every weight in the graph, which ONNX
    Runtime folds into a second copy.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite the linear layers.

        A product is a linear layer only if its right side is a transposed weight.
        """
        modified = False
        for node in list(model.graph):
            transpose = node.inputs[1].producer() if node.op_type == "MatMul" and node.inputs[1] is not None else None
            if transpose is None or transpose.op_type != "Transpose" or node.inputs[0] is None:
                continue
            weight = transpose.inputs[0]
            if weight is None or not _is_weight(weight) or transpose.attributes.get_ints("perm", [1, 0]) != (1, 0):
                continue
            added = _bias(node.outputs[0])
            last, bias = (node, []) if added is None else (added[0], [added[1]])
            rows = to_rows(model.graph, node, node.inputs[0])
            gemm = ir.node("Gemm", [rows, weight, *bias], {"transB": 1})
            model.graph.insert_before(last, gemm)
            from_rows(model.graph, last, gemm.outputs[0], last.outputs[0])
            model.graph.remove([last] if last is node else [last, node], safe=True)
            modified = True
        return PassResult(model, modified)


def _is_weight(value: ir.Value) -> bool:
    """Return whether a value is an initializer, or an initializer of more axes seen as a matrix.

    The latter is a convolution as large as its stride.
    """
    producer = value.producer()
    if producer is not None and producer.op_type == "Reshape" and producer.inputs[0] is not None:
        value = producer.inputs[0]
    return value.is_initializer()


def _bias(product: ir.Value) -> tuple[ir.Node, ir.Value] | None:
    """Return the Add that alone reads a product, and the bias that it adds; None if there is no such Add."""
    readers = [use.node for use in product.uses()]
    if len(readers) != 1 or readers[0].op_type != "Add":
        return None
    others = [value for value in readers[0].inputs if value is not None and value is not product]
    if len(others) != 1 or not others[0].is_initializer() or len(others[0].shape or ()) != 1:
        return None
    return readers[0], others[0]
