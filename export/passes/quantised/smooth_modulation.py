"""Lowering pass: smoothing factors of a block's linears go into the modulation.

The modulation scales the block's norms already. Smoothing scales them by one vector more.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from qwen_image_engine.calibration.quantise.network import QuantisedNetwork
from qwen_image_engine.calibration.quantise.static_input import StaticInput
from qwen_image_engine.calibration.rules.linears import WEIGHT
from qwen_image_engine.export.graph.external_weights import unplaced
from qwen_image_engine.export.graph.shapes import width


def smoothed_by_modulation(quantised: QuantisedNetwork) -> Mapping[str, StaticInput]:
    """Return the smoothed inputs that the modulation scales, by the name of their first reader.

    Inputs that the linear before them scales are left out.
    """
    firsts = {item.readers[0].name.removesuffix(WEIGHT): item for item in quantised.inputs.values() if item.smooth}
    paired = {pair.second for pair in quantised.pairs}
    return {name: item for name, item in firsts.items() if name not in paired}


def factors_name(first_reader: str) -> str:
    """Return the name of an input's factors in the weight file."""
    return f"{first_reader}.input_factors"


class SmoothModulation(InPlacePass):
    """Lowering pass for static int8: LayerNorm(x) * (1 + scale) becomes LayerNorm(x) * ((1 + scale) * factors).

    All blocks share 1 + scale, so the pass costs one product of two vectors a norm. Factors are powers of two: exact.
    """

    def __init__(self, quantised: QuantisedNetwork) -> None:
        super().__init__()
        self._inputs = smoothed_by_modulation(quantised)

    def call(self, model: ir.Model) -> PassResult:
        """Scale every smoothed input that the graph has.

        Raises:
            ValueError: an input of linears is no modulated norm, or something else reads it.
        """
        graph = model.graph
        for name, item in self._inputs.items():
            readers = [graph.initializers.get(reader.name) for reader in item.readers]
            gemms = [use.node for reader in readers if reader is not None for use in reader.uses()]
            if gemms:
                _scale(graph, gemms, name)
        return PassResult(model, bool(self._inputs))


def _scale(graph: ir.Graph, gemms: list[ir.Node], name: str) -> None:
    product = _modulation({gemm.inputs[0] for gemm in gemms})
    if product is None:
        raise ValueError(f"{graph.name}: the input of {name} is no norm times 1 + scale, read by nothing else")
    index, scale = next((i, v) for i, v in enumerate(product.inputs) if v is not None and not _is_norm(v))
    factors = unplaced(graph, factors_name(name), ir.Shape([width(scale)]), scale.dtype or ir.DataType.FLOAT)
    scaled = ir.node("Mul", [scale, factors])
    scaled.outputs[0].type, scaled.outputs[0].shape = scale.type, scale.shape
    graph.insert_before(product, scaled)
    product.replace_input_with(index, scaled.outputs[0])


def _modulation(inputs: set[ir.Value | None]) -> ir.Node | None:
    """Return the product of a norm and 1 + scale behind `inputs`; None if there is no such product.

    A Reshape may stand between the product and its readers.
    """
    if len(inputs) != 1:
        return None
    (value,) = inputs
    node = value.producer() if value is not None else None
    if node is not None and node.op_type == "Reshape" and node.inputs[0] is not None:
        node = node.inputs[0].producer() if len(node.inputs[0].uses()) == 1 else None
    if node is None or node.op_type != "Mul" or sum(_is_norm(item) for item in node.inputs) != 1:
        return None
    return node


def _is_norm(value: ir.Value | None) -> bool:
    """Return whether a value comes from a layer norm, directly or through a Cast and a Reshape.

    Behind the Concat of image and text the first norm is not in rows yet.
    """
    producer = value.producer() if value is not None else None
    while producer is not None and producer.op_type in ("Cast", "Reshape") and producer.inputs[0] is not None:
        producer = producer.inputs[0].producer()
    return producer is not None and producer.op_type == "LayerNormalization"
