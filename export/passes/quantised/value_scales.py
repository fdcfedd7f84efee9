"""Lowering pass: values of attention are scaled inside a graph, and unscaled at its inputs and outputs.

The keys and values in a component's contract are the network's own.
"""

from __future__ import annotations

import re

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from qwen_image_engine.calibration.quantise.network import QuantisedNetwork
from qwen_image_engine.calibration.rules.pairs import Pair
from qwen_image_engine.export.graph.external_weights import unplaced

_VALUES = re.compile(r"transformer_blocks\.(\d+)\.attn\.to_v")


def crosses_components(pair: Pair) -> bool:
    """Return whether the channels of a pair leave a prefix pass and enter another pass."""
    return _VALUES.fullmatch(pair.first) is not None


def scales_name(pair: Pair) -> str:
    """Return the name of a pair's scales in the weight file."""
    return f"{pair.first}.output_scales"


class ScaleValues(InPlacePass):
    """Lowering pass for every 8-bit target: incoming values get the graph's scales, outgoing values lose them.

    Scales are powers of two, so both products are exact. They cost a product over the prefix's tokens alone. If the
    scales were folded into the cache, a bundle's prefix and step would fit no others, and could not be compared with
    the reference.
    """

    def __init__(self, quantised: QuantisedNetwork) -> None:
        super().__init__()
        self._pairs = [pair for pair in quantised.pairs if crosses_components(pair)]

    def call(self, model: ir.Model) -> PassResult:
        """Scale the values that come in or go out; leave all other pairs."""
        graph = model.graph
        inputs = {value.name: value for value in graph.inputs}
        outputs = {value.name: value for value in graph.outputs}
        modified = False
        for pair in self._pairs:
            found = _VALUES.fullmatch(pair.first)
            assert found is not None
            name, scales = f"value_{found[1]}", scales_name(pair)
            if name in inputs:
                _scale_input(graph, inputs[name], scales)
            leaving = [output for output in (name, f"own_{name}") if output in outputs]
            for output in leaving:
                _scale_output(graph, outputs[output], scales)
            modified |= name in inputs or bool(leaving)
        return PassResult(model, modified)


def _scale_input(graph: ir.Graph, values: ir.Value, scales: str) -> None:
    product = ir.node("Mul", [values, unplaced(graph, scales, _heads(values), values.dtype or ir.DataType.FLOAT)])
    product.outputs[0].type, product.outputs[0].shape = values.type, values.shape
    for use in values.uses():
        if use.node is not product:
            use.node.replace_input_with(use.idx, product.outputs[0])
    graph.insert_before(graph[0], product)


def _scale_output(graph: ir.Graph, values: ir.Value, scales: str) -> None:
    name, producer = values.name, values.producer()
    assert producer is not None
    quotient = ir.node("Div", [values, unplaced(graph, scales, _heads(values), values.dtype or ir.DataType.FLOAT)])
    new = quotient.outputs[0]
    new.type, new.shape = values.type, values.shape
    graph.insert_after(producer, quotient)
    graph.outputs[list(graph.outputs).index(values)] = new
    values.name, new.name = f"{name}_scaled", name


def _heads(values: ir.Value) -> ir.Shape:
    """Return the shape (heads, head_dim) of values (batch, prefix, heads, head_dim)."""
    assert values.shape is not None
    return ir.Shape(list(values.shape)[2:])
