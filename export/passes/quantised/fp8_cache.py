"""Lowering pass: keys and values leave and enter a graph as codes of FP8."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from qwen_image_engine.calibration.quantise.network import QuantisedNetwork
from qwen_image_engine.engines.core.contract import layer_tensor
from qwen_image_engine.export.passes.quantised.fp8_attention import fp8_scale_name
from qwen_image_engine.export.passes.quantised.linear_to_static import CODES, step_and_zero


class Fp8Cache(InPlacePass):
    """Lowering pass for TensorRT and its twin: the prefix cache of blocks with FP8 attention is held in FP8.

    Outputs pass through QuantizeLinear and inputs through DequantizeLinear, with the scales of the block's attention.
    These scales hold for all tokens: the bound of the keys comes from their norm, and the bound of the values is over
    prefix passes and steps. What an attention reads stays as it is: a prefix's own keys and values in the graph's
    dtype; those of a step through QuantizeLinear and DequantizeLinear behind the concatenation. The second rounding of
    a code with the same scale gives the same code.

    TensorRT for RTX 1.7.1 moves these nodes: the cache is concatenated in FP8, in as many kernels and bytes as if the
    graph had one DequantizeLinear behind a Concat of codes, which ONNX does not have.
    """

    def __init__(self, quantised: QuantisedNetwork) -> None:
        super().__init__()
        self._scales: dict[str, tuple[str, float]] = {}
        for block, item in quantised.attention.items():
            _, key, value = item.scales()
            index = block.rpartition(".")[2]
            for what, scale in (("key", key), ("value", value)):
                if f"{what}_{index}" in quantised.cache:
                    self._scales[f"{what}_{index}"] = (fp8_scale_name(block, what), scale)

    def call(self, model: ir.Model) -> PassResult:
        """Make codes of the inputs and outputs that hold keys and values in FP8."""
        graph, modified = model.graph, False
        for value in graph.inputs:
            if value.name in self._scales:
                _dequantise(graph, value, *self._scales[value.name])
                modified = True
        for value in list(graph.outputs):
            name = layer_tensor(value.name or "")
            if name in self._scales:
                _quantise(graph, value, *self._scales[name])
                modified = True
        return PassResult(model, modified)


def _dequantise(graph: ir.Graph, codes: ir.Value, name: str, scale: float) -> None:
    step, zero = step_and_zero(graph, codes, scale, "fp8", name)
    uses = list(codes.uses())
    node = ir.node("DequantizeLinear", [codes, step, zero])
    node.outputs[0].type, node.outputs[0].shape = codes.type, codes.shape
    codes.type = ir.TensorType(CODES["fp8"].dtype)
    for use in uses:
        use.node.replace_input_with(use.idx, node.outputs[0])
    graph.insert_before(graph[0], node)


def _quantise(graph: ir.Graph, values: ir.Value, name: str, scale: float) -> None:
    step, zero = step_and_zero(graph, values, scale, "fp8", name)
    producer = values.producer()
    assert producer is not None
    node = ir.node("QuantizeLinear", [values, step, zero])
    codes = node.outputs[0]
    codes.type, codes.shape = ir.TensorType(CODES["fp8"].dtype), values.shape
    graph.insert_after(producer, node)
    graph.outputs[list(graph.outputs).index(values)] = codes
    values.name, codes.name = f"{values.name}_values", values.name
