"""Lowering pass: FP8 products in ONNX Runtime's form for CUDA replace the form that TensorRT fuses."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from qwen_image_engine.calibration.quantise.network import QuantisedNetwork
from qwen_image_engine.export.graph.nodes import add_constant, constant

OPERATOR = "GemmFloat8"
_DOMAIN = "com.microsoft"


class GemmFloat8(InPlacePass):
    """Lowering pass for CUDA, after `LinearToStatic`: a Gemm of codes becomes one `GemmFloat8`.

    The pass replaces DequantizeLinear on both operands and Gemm(transB=1). The kernel takes codes of E4M3 and one
    float32 scale an operand, and gives float16. Quantised linears have no bias.
    """

    def __init__(self, quantised: QuantisedNetwork) -> None:
        super().__init__()

    def call(self, model: ir.Model) -> PassResult:
        """Replace every product of codes."""
        graph, modified = model.graph, False
        for node in list(graph):
            makers = [value.producer() if value is not None else None for value in node.inputs[:2]]
            rows, weight = makers if len(makers) == 2 else (None, None)
            if node.op_type != "Gemm" or rows is None or weight is None or not _dequantise(rows, weight):
                continue
            self._replace(graph, node, rows, weight)
            modified = True
        if modified:
            model.opset_imports[_DOMAIN] = 1
        return PassResult(model, modified)

    def _replace(self, graph: ir.Graph, node: ir.Node, rows: ir.Node, weight: ir.Node) -> None:
        step, output = rows.inputs[1], node.outputs[0]
        assert step is not None
        assert len(node.inputs) == 2 or node.inputs[2] is None
        assert output.dtype is not None
        value = constant(step)
        assert value is not None
        scale = add_constant(graph, f"{step.name}_in_float32", value.astype(np.float32))
        weight_scale = weight.inputs[1]
        assert weight_scale is not None
        assert weight_scale.dtype == ir.DataType.FLOAT
        product = ir.node(
            OPERATOR,
            [rows.inputs[0], weight.inputs[0], None, scale, weight_scale],
            {"transB": 1, "dtype": int(output.dtype)},
            domain=_DOMAIN,
        )
        ir.convenience.replace_nodes_and_values(graph, node, [node], [product], [output], [product.outputs[0]])
        for maker in (rows, weight):
            if not maker.outputs[0].uses():
                graph.remove(maker, safe=True)


def _dequantise(*nodes: ir.Node) -> bool:
    codes = [node.inputs[0] for node in nodes if node.op_type == "DequantizeLinear"]
    return [value.dtype for value in codes if value is not None] == [ir.DataType.FLOAT8E4M3FN] * len(nodes)
