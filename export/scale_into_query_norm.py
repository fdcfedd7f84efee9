"""Attention's 1 / sqrt(head_dim) as part of the queries' norm."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from qwen_image_engine.export.constants import add_constant
from qwen_image_engine.export.sizes import width

# What a factor passes through, and rounding does not change the names of.
_LINEAR = frozenset({"Transpose", "Reshape", "Cast", "RotaryEmbedding", "Slice", "QuantizeLinear", "DequantizeLinear"})


class ScaleIntoQueryNorm(InPlacePass):
    """TensorRT: queries come out of their RMS norm scaled, and attention scales nothing.

    ONNX defines Attention's scale as one product over the queries and one over the keys, by its square root each; here
    it is one over the norm's weight, head_dim numbers that are constant when an engine is built. FP8 attention needs it
    there: nothing may stand between DequantizeLinear and the product.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Attention whose queries come from no norm keeps its scale."""
        scaled: dict[ir.Node, float] = {}
        for node in list(model.graph):
            norm = query_norm(node) if node.op_type == "Attention" and node.domain == "" else None
            if norm is not None and node.inputs[0] is not None:
                factor = node.attributes.get_float("scale", width(node.inputs[0]) ** -0.5)
                if norm not in scaled:  # a reference image and the text after it are two attentions of one norm
                    _scale_weight(model.graph, norm, factor)
                    scaled[norm] = factor
                assert scaled[norm] == factor, f"{model.graph.name}: two scales for the queries of {norm.name}"
                node.attributes["scale"] = ir.AttrFloat32("scale", 1.0)
        return PassResult(model, bool(scaled))


def query_norm(attention: ir.Node) -> ir.Node | None:
    """The RMS norm that an Attention's queries come from, None where they come from none."""
    value = attention.inputs[0]
    while value is not None and (len(value.uses()) == 1 or _is_sliced(value)):
        node = value.producer()
        if node is None or node.op_type == "RMSNormalization":
            return node
        if node.op_type not in _LINEAR:
            return None
        value = node.inputs[0]
    return None


def _is_sliced(value: ir.Value) -> bool:
    """Whether all that reads it are Slices, each for an attention of its own."""
    return all(use.node.op_type == "Slice" for use in value.uses())


def _scale_weight(graph: ir.Graph, norm: ir.Node, factor: float) -> None:
    weight = norm.inputs[1]
    assert weight is not None
    assert weight.dtype == ir.DataType.FLOAT, f"{graph.name}: a norm in {weight.dtype}"
    scaled = ir.node("Mul", [weight, add_constant(graph, "query_scale", np.array(factor, dtype=np.float32))])
    scaled.outputs[0].type, scaled.outputs[0].shape = weight.type, weight.shape
    graph.insert_before(norm, scaled)
    norm.replace_input_with(1, scaled.outputs[0])
