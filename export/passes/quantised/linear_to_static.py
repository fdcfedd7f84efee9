"""Lowering pass: linears in 8 bits with constant scales.

QuantizeLinear and DequantizeLinear stand on both operands of a Gemm.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from qwen_image_engine.calibration.quantise.network import QuantisedNetwork
from qwen_image_engine.calibration.rules.linears import WEIGHT
from qwen_image_engine.export.graph.external_weights import set_unplaced, unplaced
from qwen_image_engine.export.graph.nodes import add_constant
from qwen_image_engine.export.graph.shapes import width


@dataclass(frozen=True)
class _Codes:
    """The stored form of a precision: the dtype of the codes, and the code that stands for zero."""

    dtype: ir.DataType
    zero: np.generic


CODES = {
    "int8": _Codes(ir.DataType.INT8, np.int8(0)),
    "fp8": _Codes(ir.DataType.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn(0)),
}


class LinearToStatic(InPlacePass):
    """Lowering pass for GPUs and TensorRT's twin: Gemm reads codes through QuantizeLinear and DequantizeLinear.

    The result is QuantizeLinear, DequantizeLinear, Gemm(transB=1) with a quantised weight, in the form that TensorRT
    fuses. Quantisation is symmetric. Scales are constant and in the dtype of the activations. Weights are stored as
    codes. There is one scale a tensor for activations and for FP8 weights, and one an output channel for int8 weights.
    Nothing stands between DequantizeLinear and the product. Linears that read the same rows in one precision share
    their codes.
    """

    def __init__(self, quantised: QuantisedNetwork) -> None:
        super().__init__()
        self._quantised = quantised

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite every quantised linear.

        The name of the graph is the component, which has scales of its own.
        """
        graph = model.graph
        assert graph.name is not None
        shared: dict[tuple[ir.Value, str], ir.Value] = {}
        modified = False
        for node in list(graph):
            weight = node.inputs[1] if node.op_type == "Gemm" else None
            name = weight.name.removesuffix(WEIGHT) if weight is not None and weight.name is not None else ""
            layer, rows = self._quantised.layers.get(name), node.inputs[0] if node.inputs else None
            if layer is None or weight is None or rows is None:
                continue
            key = (rows, layer.precision)
            if key not in shared:
                scale = self._quantised.inputs[name].scale(graph.name, layer.precision)
                shared[key] = through_codes(graph, node, rows, scale, layer.precision, f"{name}.input_scale")
            node.replace_input_with(0, shared[key])
            node.replace_input_with(1, _dequantised(graph, node, weight, layer.precision))
            modified = True
        return PassResult(model, modified)


def through_codes(
    graph: ir.Graph, before: ir.Node, value: ir.Value, scale: float, precision: str, name: str
) -> ir.Value:
    """Return `value` quantised and dequantised, by nodes before `before`.

    `name` is the name of the constant that holds `scale`.
    """
    codes = CODES[precision]
    step, zero = step_and_zero(graph, value, scale, precision, name)
    quantised = ir.node("QuantizeLinear", [value, step, zero])
    values = ir.node("DequantizeLinear", [quantised.outputs[0], step, zero])
    quantised.outputs[0].type, quantised.outputs[0].shape = ir.TensorType(codes.dtype), value.shape
    values.outputs[0].type, values.outputs[0].shape = value.type, value.shape
    graph.insert_before(before, [quantised, values])
    return values.outputs[0]


def step_and_zero(
    graph: ir.Graph, value: ir.Value, scale: float, precision: str, name: str
) -> tuple[ir.Value, ir.Value]:
    """Return scale and zero point of the codes of `value` as constants: `scale` in its dtype, named `name`."""
    assert value.dtype is not None
    dtype = value.dtype.numpy()
    # Below it fp16 rounds scales coarsely, and to 0 at last. Codes of FP8 keep their precision under a larger scale.
    least = float(np.finfo(np.float16).smallest_normal) if dtype == np.float16 else 0.0
    step = add_constant(graph, name, np.array(max(scale, least), dtype=dtype))
    return step, add_constant(graph, f"{precision}_zero", np.array(CODES[precision].zero))


def _dequantised(graph: ir.Graph, before: ir.Node, weight: ir.Value, precision: str) -> ir.Value:
    assert weight.name is not None
    assert weight.shape is not None
    assert weight.dtype is not None
    codes, activations = CODES[precision], ir.TensorType(weight.dtype)
    by_channel = precision == "int8"
    shape = [width(weight, 0)] if by_channel else []
    in_float32 = precision == "fp8" and weight.dtype == ir.DataType.FLOAT16  # `network_weights` stores it so
    dtype = ir.DataType.FLOAT if in_float32 else weight.dtype
    scale = unplaced(graph, f"{weight.name}_scale", ir.Shape(shape), dtype)
    zero = add_constant(graph, f"{weight.name}_zero_point", np.full(shape, codes.zero))
    set_unplaced(weight, weight.name, weight.shape, codes.dtype)
    attributes = ({"axis": 0} if by_channel else {}) | ({"output_dtype": int(activations.dtype)} if in_float32 else {})
    node = ir.node("DequantizeLinear", [weight, scale, zero], attributes)
    node.outputs[0].type, node.outputs[0].shape = activations, weight.shape
    graph.insert_before(before, node)
    return node.outputs[0]
