"""Ways to break a graph that keeps TensorRT's rules, by the rule."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx_ir as ir

from qwen_image_engine.export.graph.attention import query_norm

Change = Callable[[ir.Graph], None]


def first(graph: ir.Graph, *operators: str) -> ir.Node:
    return next(node for node in graph if node.op_type in operators)


def dequantised(graph: ir.Graph, *, stored: bool) -> ir.Node:
    """The first DequantizeLinear of a weight, or of activations."""
    found = (node for node in graph if node.op_type == "DequantizeLinear")
    return next(node for node in found if node.inputs[0].is_initializer() == stored)


def initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    value.shape, value.type = ir.Shape(array.shape), ir.TensorType(ir.tensor(array).dtype)
    graph.register_initializer(value)
    return value


def foreign_operator(graph: ir.Graph) -> None:
    first(graph, "Gemm").domain = "com.microsoft"


def other_edge(graph: ir.Graph) -> None:
    graph.inputs[0].type = ir.TensorType(ir.DataType.BFLOAT16)


def cached_attention(graph: ir.Graph) -> None:
    node = first(graph, "Attention")
    node.resize_inputs(6)
    node.replace_input_with(4, node.inputs[1])
    node.replace_input_with(5, node.inputs[2])


def masked_attention(graph: ir.Graph) -> None:
    node = first(graph, "Attention")
    mask = initializer(graph, "mask", np.ones((4, 4), bool))
    node.resize_inputs(4)
    node.replace_input_with(3, mask)


def scaled_attention(graph: ir.Graph) -> None:
    first(graph, "Attention").attributes["scale"] = ir.AttrFloat32("scale", 0.5)


def rounded_statistics(graph: ir.Graph) -> None:
    first(graph, "LayerNormalization").attributes["stash_type"] = ir.AttrInt64("stash_type", 16)


def rounded_norm(graph: ir.Graph) -> None:
    norm = first(graph, "LayerNormalization")
    for index, value in enumerate(norm.inputs):
        norm.replace_input_with(index, value.producer().inputs[0])


def second_of_a_name(graph: ir.Graph) -> None:
    one, other = [node for node in graph if node.op_type == "Gemm"][:2]
    other.name = one.name


def nameless_node(graph: ir.Graph) -> None:
    first(graph, "Gemm").name = ""


def external(graph: ir.Graph, **changes: object) -> None:
    """The first weight in a file, otherwise placed."""
    value = next(item for item in graph.initializers.values() if isinstance(item.const_value, ir.ExternalTensor))
    tensor = value.const_value
    place = {"location": tensor.location, "offset": tensor.offset, "length": tensor.length, **changes}
    value.const_value = ir.ExternalTensor(
        **place, dtype=tensor.dtype, shape=tensor.shape, name=tensor.name, base_dir=tensor.base_dir
    )


def weight_of_another_length(graph: ir.Graph) -> None:
    external(graph, length=2)


def weight_of_another_folder(graph: ir.Graph) -> None:
    external(graph, location="../weights.safetensors")


def attention_of_flat_operands(graph: ir.Graph) -> None:
    first(graph, "Attention").inputs[1].shape = ir.Shape(["batch", "tokens", 64])


def queries_as_they_come(graph: ir.Graph) -> None:
    """A scale of 1 and nothing in its place."""
    product = next(node for node in graph if node.op_type == "Mul" and "query_scale" in str(node.inputs[1].name))
    product.outputs[0].replace_all_uses_with(product.inputs[0])


def rope_of_positions(graph: ir.Graph) -> None:
    node = first(graph, "RotaryEmbedding")
    node.resize_inputs(4)
    node.replace_input_with(3, initializer(graph, "positions", np.zeros((1, 4), np.int64)))


def rope_of_no_heads(graph: ir.Graph) -> None:
    first(graph, "RotaryEmbedding").inputs[0].shape = ir.Shape(["batch", "tokens", 64])
    first(graph, "RotaryEmbedding").attributes.pop("num_heads", None)


def negative_scale(graph: ir.Graph) -> None:
    scale = initializer(graph, "negative", np.array(-0.5, ml_dtypes.bfloat16))
    first(graph, "QuantizeLinear").replace_input_with(1, scale)


def rounded_angles(graph: ir.Graph) -> None:
    value = first(graph, "RotaryEmbedding").inputs[0]
    assert value is not None
    value.type = ir.TensorType(ir.DataType.BFLOAT16)


def wide_scale(graph: ir.Graph) -> None:
    node = first(graph, "QuantizeLinear")
    node.replace_input_with(1, initializer(graph, "wide", np.array(0.5, np.float32)))


def late_weight(graph: ir.Graph) -> None:
    """The codes of a weight through an operator, as where they are made when the graph runs."""
    node = dequantised(graph, stored=True)
    copy = ir.node("Identity", [node.inputs[0]])
    copy.outputs[0].type, copy.outputs[0].shape = node.inputs[0].type, node.inputs[0].shape
    graph.insert_before(node, copy)
    node.replace_input_with(0, copy.outputs[0])


def something_between(graph: ir.Graph) -> None:
    node = dequantised(graph, stored=False)
    between = ir.node("Identity", node.outputs)
    between.outputs[0].type, between.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
    for use in list(node.outputs[0].uses()):
        if use.node is not between:
            use.node.replace_input_with(use.idx, between.outputs[0])
    graph.insert_after(node, between)


def quantised_softmax(graph: ir.Graph) -> None:
    quantise = first(graph, "QuantizeLinear")
    softmax = ir.node("Softmax", [quantise.inputs[0]])
    softmax.outputs[0].type, softmax.outputs[0].shape = quantise.inputs[0].type, quantise.inputs[0].shape
    graph.insert_before(quantise, softmax)
    quantise.replace_input_with(0, softmax.outputs[0])


def one_scale_for_all_channels(graph: ir.Graph) -> None:
    node = dequantised(graph, stored=True)
    node.replace_input_with(1, initializer(graph, "one", np.array(0.5, ml_dtypes.bfloat16)))


def other_codes(graph: ir.Graph) -> None:
    node = dequantised(graph, stored=True)
    node.inputs[0].type = ir.TensorType(ir.DataType.INT8)


def operator_of_its_own(graph: ir.Graph) -> None:
    first(graph, "Gemm").op_type = "Foo"


def branch(graph: ir.Graph) -> None:
    """An If in ai.onnx, with a node in it."""
    node = first(graph, "Sigmoid")
    inner = ir.node("Sigmoid", [node.inputs[0]])
    body = ir.Graph([], inner.outputs, nodes=[inner], name="then")
    graph.insert_before(node, ir.node("If", [initializer(graph, "always", np.array(True))], {"then_branch": body}))


def foreign_operator_in_a_branch(graph: ir.Graph) -> None:
    node = first(graph, "Sigmoid")
    inner = ir.node("FusedMatMul", [node.inputs[0]], domain="com.microsoft")
    body = ir.Graph([], inner.outputs, nodes=[inner], name="then")
    node.attributes["body"] = ir.AttrGraph("body", body)


def decomposed_attention(graph: ir.Graph) -> None:
    """Every Attention as MatMul, Softmax, MatMul."""
    for node in [node for node in graph if node.op_type == "Attention"]:
        queries, keys, values = node.inputs[:3]
        turned = ir.node("Transpose", [keys], {"perm": [0, 1, 3, 2]})
        scores = ir.node("MatMul", [queries, turned.outputs[0]])
        softmax = ir.node("Softmax", scores.outputs)
        replace_node(graph, node, [turned, scores, softmax], ir.node("MatMul", [softmax.outputs[0], values]))


def decomposed_rope(graph: ir.Graph) -> None:
    """Every RotaryEmbedding as one of its products."""
    for node in [node for node in graph if node.op_type == "RotaryEmbedding"]:
        replace_node(graph, node, [], ir.node("Mul", node.inputs[:2]))


def replace_node(graph: ir.Graph, old: ir.Node, before: list[ir.Node], last: ir.Node) -> None:
    for node in (*before, last):
        node.outputs[0].type = old.outputs[0].type
    graph.insert_before(old, [*before, last])
    old.outputs[0].replace_all_uses_with(last.outputs[0])
    graph.remove(old, safe=True)


def everything_in_float32(graph: ir.Graph) -> None:
    values = [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    for value in values:
        if value.dtype == ir.DataType.BFLOAT16:
            value.type = ir.TensorType(ir.DataType.FLOAT)


def one_product_in_float32(graph: ir.Graph) -> None:
    value = first(graph, "Gemm").inputs[0]
    assert value is not None
    value.type = ir.TensorType(ir.DataType.FLOAT)


def rounded_time(graph: ir.Graph) -> None:
    """Time features to bf16 and back before anything reads them."""
    (features,) = (value for value in graph.inputs if value.name == "time_features")
    uses = list(features.uses())
    down = ir.node("Cast", [features], {"to": ir.DataType.BFLOAT16})
    up = ir.node("Cast", down.outputs, {"to": ir.DataType.FLOAT})
    down.outputs[0].type, up.outputs[0].type = ir.TensorType(ir.DataType.BFLOAT16), features.type
    graph.insert_before(uses[0].node, [down, up])
    for use in uses:
        use.node.replace_input_with(use.idx, up.outputs[0])


def causal_attention(graph: ir.Graph) -> None:
    first(graph, "Attention").attributes["is_causal"] = ir.AttrInt64("is_causal", 1)


def attention_that_sees_all(graph: ir.Graph) -> None:
    first(graph, "Attention").attributes["is_causal"] = ir.AttrInt64("is_causal", 0)


def capped_attention(graph: ir.Graph) -> None:
    first(graph, "Attention").attributes["softcap"] = ir.AttrFloat32("softcap", 30.0)


def rounded_softmax(graph: ir.Graph) -> None:
    first(graph, "Attention").attributes["softmax_precision"] = ir.AttrInt64("softmax_precision", 16)


def lost_pair(graph: ir.Graph) -> None:
    """A linear of the manifest without its codes: activations and weight as they come."""
    node = next(node for node in graph if node.op_type == "Gemm" and is_dequantised(node))
    for index, dtype in ((0, None), (1, ir.DataType.BFLOAT16)):
        dequantise = node.inputs[index].producer()
        source = dequantise.inputs[0]
        if dtype is None:
            source = source.producer().inputs[0]
        else:
            source.type = ir.TensorType(dtype)
        node.replace_input_with(index, source)


def is_dequantised(node: ir.Node) -> bool:
    maker = node.inputs[1].producer() if node.inputs[1] is not None else None
    return maker is not None and maker.op_type == "DequantizeLinear"


def attention_without_codes(graph: ir.Graph) -> None:
    node = first(graph, "Attention")
    for index in range(3):
        dequantise = node.inputs[index].producer()
        node.replace_input_with(index, dequantise.inputs[0].producer().inputs[0])


def queries_past_their_norm(graph: ir.Graph) -> None:
    norm = query_norm(first(graph, "Attention"))
    assert norm is not None
    ir.convenience.replace_all_uses_with(norm.outputs[0], norm.inputs[0])


def queries_that_others_read(graph: ir.Graph) -> None:
    """Another scale then would go unseen."""
    node = first(graph, "Attention")
    copy = ir.node("Identity", [node.inputs[0]])
    graph.insert_before(node, copy)
    node.attributes["scale"] = ir.AttrFloat32("scale", 0.25)


def statistics_in_bf16(graph: ir.Graph) -> None:
    """A norm taken apart, in the component's dtype."""
    norm = first(graph, "LayerNormalization")
    mean = ir.node("ReduceMean", [norm.inputs[0]])
    mean.outputs[0].type = ir.TensorType(ir.DataType.BFLOAT16)
    less = ir.node("Sub", [norm.inputs[0], mean.outputs[0]])
    squares = ir.node("ReduceSumSquare", [less.outputs[0]])
    for node in (less, squares):
        node.outputs[0].type = ir.TensorType(ir.DataType.BFLOAT16)
    graph.insert_before(norm, [mean, less, squares])
    norm.replace_input_with(0, less.outputs[0])


def angles_of_no_stated_dtype(graph: ir.Graph) -> None:
    value = first(graph, "RotaryEmbedding").inputs[0]
    assert value is not None
    value.type = None


def product_without_its_scale(graph: ir.Graph) -> None:
    first(graph, "GemmFloat8").replace_input_with(3, None)


def product_in_another_form(graph: ir.Graph) -> None:
    first(graph, "GemmFloat8").attributes["transB"] = ir.AttrInt64("transB", 0)


def product_of_rows_in_float16(graph: ir.Graph) -> None:
    node = first(graph, "GemmFloat8")
    rows = node.inputs[0]
    assert rows is not None
    rows.type = ir.TensorType(ir.DataType.FLOAT16)


BROKEN: dict[str, tuple[str, str, Change]] = {
    "operators": ("bf16", "step", foreign_operator),
    "edge": ("bf16", "step", other_edge),
    "attention": ("bf16", "step", cached_attention),
    "mask": ("bf16", "step", masked_attention),
    "attention-scale": ("bf16", "step", scaled_attention),
    "norm-statistics": ("bf16", "step", rounded_statistics),
    "layer-norm": ("bf16", "step", rounded_norm),
    "names": ("bf16", "step", second_of_a_name),
    "weight-files": ("bf16", "step", weight_of_another_length),
    "float32": ("bf16", "step", rounded_angles),
    "scales": ("fp8", "step", wide_scale),
    "stored-weights": ("fp8", "step", late_weight),
    "next-to-product": ("fp8", "step", something_between),
    "softmax": ("fp8", "step", quantised_softmax),
    "scale-form": ("int8", "step", one_scale_for_all_channels),
    "one-kind": ("fp8", "step", other_codes),
    "attention-count": ("bf16", "step", decomposed_attention),
    "attention-form": ("bf16", "step", causal_attention),
    "rope": ("bf16", "step", decomposed_rope),
    "precision": ("bf16", "step", everything_in_float32),
    "time-features": ("bf16", "step", rounded_time),
    "float8-products": ("cuda fp8", "step", product_without_its_scale),
    "quantised": ("fp8", "step", lost_pair),
}
"""By rule: precision, component, and what is done to its graph."""

ALSO: tuple[tuple[str, str, str, Change], ...] = (
    ("operators", "bf16", "step", operator_of_its_own),
    ("operators", "bf16", "step", branch),
    ("operators", "bf16", "step", foreign_operator_in_a_branch),
    ("attention-count", "bf16", "text_encoder", decomposed_attention),
    ("attention-count", "bf16", "prefix_image", decomposed_attention),
    ("attention-count", "bf16", "vision", decomposed_attention),
    ("attention-count", "bf16", "vae_decoder_mid", decomposed_attention),
    ("attention-form", "bf16", "prefix", attention_that_sees_all),
    ("attention-form", "bf16", "step", capped_attention),
    ("attention", "bf16", "step", rounded_softmax),
    ("attention", "bf16", "prefix", masked_attention),
    ("attention", "bf16", "step", attention_of_flat_operands),
    ("attention-scale", "bf16", "vision", scaled_attention),
    ("attention-scale", "bf16", "vae_decoder_mid", queries_as_they_come),
    ("rope", "bf16", "step", rope_of_positions),
    ("rope", "bf16", "step", rope_of_no_heads),
    ("scales", "fp8", "step", negative_scale),
    ("names", "bf16", "step", nameless_node),
    ("weight-files", "bf16", "step", weight_of_another_folder),
    ("rope", "bf16", "text_encoder", decomposed_rope),
    ("precision", "bf16", "step", one_product_in_float32),
    ("precision", "bf16", "vae_decoder_mid", everything_in_float32),
    ("attention-scale", "bf16", "step", queries_past_their_norm),
    ("attention-scale", "bf16", "step", queries_that_others_read),
    ("float32", "bf16", "step", statistics_in_bf16),
    ("float32", "bf16", "step", angles_of_no_stated_dtype),
    ("float8-products", "cuda fp8", "step", product_in_another_form),
    ("float8-products", "cuda fp8", "prefix", product_of_rows_in_float16),
    ("quantised", "int8", "step", lost_pair),
    ("quantised", "fp8a", "step", attention_without_codes),
)
"""More ways to break a rule."""
