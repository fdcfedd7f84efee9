"""Lowering pass: linears become products of integers.

Rows are 8-bit with one scale a token, weights are 8-bit with one scale an output channel. For rows x (R, K) and a
weight W (N, K), rotated in blocks at export as the rows are in the graph:

    r = x rotated            m = max |r| of each row            q = round(127 r / m) + 128, uint8
    x W^T = m / 127 * (q - 128) codes^T * scales
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from qwen_image_engine.calibration.quantise.hadamard import hadamard
from qwen_image_engine.calibration.quantise.int8 import LEVELS
from qwen_image_engine.calibration.quantise.network import QuantisedNetwork
from qwen_image_engine.calibration.rules.linears import WEIGHT
from qwen_image_engine.export.graph.external_weights import set_unplaced, unplaced
from qwen_image_engine.export.graph.nodes import add_constant
from qwen_image_engine.export.graph.shapes import width

_OFFSET = 128


class LinearToInt8(InPlacePass):
    """Lowering pass for CPU int8: Gemm with a quantised weight becomes QuantizeLinear, DequantizeLinear, Gemm.

    Engines fuse these nodes. Behaviour of ONNX Runtime 1.32:
    - Activations are uint8 with zero point 128. If linears share their input, as q, k, v and gate, proj do, int8
      activations fuse into none of them with MatMul. They run in fp32 then, up to 6 times slower.
    - Weights are int8 with an explicit zero point of zeros, each weight its own. Without a zero point nothing fuses. A
      zero point that two weights share cannot be turned into uint8 twice (see below). Weights keep the checkpoint's
      layout; with Gemm(transB=1) they become QGemm at the speed of MatMul and MatMulIntegerToFloat.
    - Without VNNI, the AVX2 kernel for uint8 by int8 adds pairs of products in 16 bits and saturates: 11% off on normal
      weights, 99% on the worst. On such a CPU the engine asks for the uint8 by uint8 kernel, which is exact (1e-7).
      Weights stored as uint8 would get that kernel for every user of the file, but OpenVINO 2026.4 takes a kernel for
      fp32 then.
    """

    def __init__(self, quantised: QuantisedNetwork) -> None:
        super().__init__()
        self._rotations = {name + WEIGHT: layer.rotation for name, layer in quantised.layers.items()}

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite every quantised linear.

        Linears that read the same rows share one rotation and one quantisation.
        """
        shared: dict[tuple[ir.Value, int], tuple[ir.Value, ir.Value]] = {}
        modified = False
        for node in list(model.graph):
            weight = node.inputs[1] if node.op_type == "Gemm" else None
            rows = node.inputs[0] if node.inputs else None
            if weight is None or weight.name not in self._rotations or rows is None:
                continue
            key = (rows, self._rotations[weight.name])
            if key not in shared:
                shared[key] = _quantised_rows(model.graph, node, *key)
            _replace(model.graph, node, *shared[key], weight)
            modified = True
        return PassResult(model, modified)


def _quantised_rows(graph: ir.Graph, before: ir.Node, rows: ir.Value, block: int) -> tuple[ir.Value, ir.Value]:
    """Return rows (R, K) after rotation and 8 bits, and the largest magnitude of each row (R, 1).

    The rotated rows are divided by that magnitude before they are quantised.
    """
    channels = width(rows)
    rotated = rows if block == 1 else _rotated(graph, before, rows, block)
    magnitudes = ir.node("Abs", [rotated])
    last = add_constant(graph, "last_axis", np.array([-1], dtype=np.int64))
    largest = ir.node("ReduceMax", [magnitudes.outputs[0], last], {"keepdims": 1})
    # A row of zeros stays zeros; the least normal number, whose inverse is finite too.
    least = add_constant(graph, "least", np.array(np.finfo(np.float32).tiny))
    positive = ir.node("Max", [largest.outputs[0], least])
    unit = ir.node("Div", [rotated, positive.outputs[0]])
    scale = add_constant(graph, "unit_scale", np.array(1 / LEVELS, dtype=np.float32))
    offset = add_constant(graph, "unit_offset", np.array(_OFFSET, dtype=np.uint8))
    codes = ir.node("QuantizeLinear", [unit.outputs[0], scale, offset])
    values = ir.node("DequantizeLinear", [codes.outputs[0], scale, offset])
    count = rows.shape[0] if rows.shape is not None else None
    for node in (magnitudes, unit, values, codes):
        node.outputs[0].type, node.outputs[0].shape = rows.type, ir.Shape([count, channels])
    codes.outputs[0].type = ir.TensorType(ir.DataType.UINT8)
    for node in (largest, positive):
        node.outputs[0].type, node.outputs[0].shape = rows.type, ir.Shape([count, 1])
    graph.insert_before(before, [magnitudes, largest, positive, unit, codes, values])
    return values.outputs[0], positive.outputs[0]


def _rotated(graph: ir.Graph, before: ir.Node, rows: ir.Value, block: int) -> ir.Value:
    channels = width(rows)
    matrix = add_constant(graph, f"hadamard_{block}", hadamard(block).numpy())
    split = add_constant(graph, f"shape_n_{block}", np.array([-1, block], dtype=np.int64))
    whole = add_constant(graph, f"shape_n_{channels}", np.array([-1, channels], dtype=np.int64))
    blocks = ir.node("Reshape", [rows, split])
    product = ir.node("MatMul", [blocks.outputs[0], matrix])
    rotated = ir.node("Reshape", [product.outputs[0], whole])
    for node in (blocks, product):
        node.outputs[0].type, node.outputs[0].shape = rows.type, ir.Shape([None, block])
    rotated.outputs[0].type, rotated.outputs[0].shape = rows.type, rows.shape
    graph.insert_before(before, [blocks, product, rotated])
    return rotated.outputs[0]


def _replace(graph: ir.Graph, gemm: ir.Node, rows: ir.Value, largest: ir.Value, weight: ir.Value) -> None:
    assert weight.name is not None
    assert weight.shape is not None
    outputs = width(weight, 0)
    wanted = weight.type
    set_unplaced(weight, weight.name, weight.shape, ir.DataType.INT8)
    scales = unplaced(graph, f"{weight.name}_scale", ir.Shape([outputs]), ir.DataType.FLOAT)
    zeros = add_constant(graph, f"{weight.name}_zero_point", np.zeros(outputs, dtype=np.int8))
    dequantised = ir.node("DequantizeLinear", [weight, scales, zeros], {"axis": 0})
    dequantised.outputs[0].type, dequantised.outputs[0].shape = wanted, weight.shape
    product = ir.node("Gemm", [rows, dequantised.outputs[0]], {"transB": 1})
    scaled = ir.node("Mul", [product.outputs[0], largest])
    old, new = gemm.outputs[0], scaled.outputs[0]
    product.outputs[0].type, product.outputs[0].shape = old.type, old.shape
    new.name, new.type, new.shape = old.name, old.type, old.shape
    graph.insert_before(gemm, [dequantised, product, scaled])
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.remove(gemm, safe=True)
