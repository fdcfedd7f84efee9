"""Lowering pass: Attention's 1 / sqrt(head_dim) becomes part of the queries."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from qwen_image_engine.export.graph.attention import query_norm
from qwen_image_engine.export.graph.nodes import add_constant, cast
from qwen_image_engine.export.graph.shapes import width


class ScaleIntoQueries(InPlacePass):
    """Lowering pass for GPUs: queries come scaled, and attention scales nothing.

    ONNX defines Attention's scale as one product over the queries and one over the keys, each by the square root of the
    scale. TensorRT's parser makes these products in the graph's dtype. In bf16 the roots of 1/sqrt(72) and 1/sqrt(128)
    are 0.14% off, so that every logit is 0.3% too large or too small. A scale of 1 has an exact root.

    If queries come from an RMS norm, the weight of the norm takes the factor: head_dim numbers that are constant when a
    plan is built. Other queries are multiplied in float32, before they are rounded if that is possible.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite every Attention of ai.onnx, whether it has a scale or leaves it to the default."""
        scaled: dict[ir.Node, float] = {}
        modified = False
        for node in list(model.graph):
            queries = node.inputs[0] if node.op_type == "Attention" and node.domain == "" else None
            if queries is None:
                continue
            factor, norm = node.attributes.get_float("scale", width(queries) ** -0.5), query_norm(node)
            if norm is None:
                _scale_values(model.graph, node, factor)
            else:
                if norm not in scaled:  # a reference image and the text after it are two attentions of one norm
                    _scale_weight(model.graph, norm, factor)
                    scaled[norm] = factor
                assert scaled[norm] == factor, f"{model.graph.name}: two scales for the queries of {norm.name}"
            node.attributes["scale"] = ir.AttrFloat32("scale", 1.0)
            modified = True
        return PassResult(model, modified)


def _scale_values(graph: ir.Graph, attention: ir.Node, factor: float) -> None:
    """Multiply an Attention's queries by `factor` in float32.

    The product stands before transposes, and before the Cast if float32 is rounded there.
    """
    reader = attention
    while (producer := _only_read_by(reader)) is not None and producer.op_type in ("Reshape", "Transpose"):
        reader = producer
    if producer is not None and producer.op_type == "Cast":
        source = producer.inputs[0]
        if source is not None and source.dtype == ir.DataType.FLOAT:
            reader = producer
    value = reader.inputs[0]
    assert value is not None
    assert value.dtype is not None
    if value.dtype == ir.DataType.FLOAT:
        nodes = [_product(graph, value, factor)]
    else:
        up = cast(value, ir.DataType.FLOAT)
        product = _product(graph, up.outputs[0], factor)
        nodes = [up, product, cast(product.outputs[0], value.dtype)]
    graph.insert_before(reader, nodes)
    reader.replace_input_with(0, nodes[-1].outputs[0])


def _only_read_by(reader: ir.Node) -> ir.Node | None:
    """Return the producer of the first input; None if anything else reads that input."""
    value = reader.inputs[0]
    return value.producer() if value is not None and len(value.uses()) == 1 else None


def _scale_weight(graph: ir.Graph, norm: ir.Node, factor: float) -> None:
    weight = norm.inputs[1]
    assert weight is not None
    assert weight.dtype == ir.DataType.FLOAT, f"{graph.name}: a norm in {weight.dtype}"
    scaled = _product(graph, weight, factor)
    graph.insert_before(norm, scaled)
    norm.replace_input_with(1, scaled.outputs[0])


def _product(graph: ir.Graph, value: ir.Value, factor: float) -> ir.Node:
    """Return the product of a float32 value and a constant, a node that is in no graph yet."""
    node = ir.node("Mul", [value, add_constant(graph, "query_scale", np.array(factor, dtype=np.float32))])
    node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
    return node
