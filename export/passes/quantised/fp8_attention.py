"""Lowering passes: attention with queries, keys, values and probabilities in FP8."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from qwen_image_engine.calibration.quantise.fp8 import SOFTMAX
from qwen_image_engine.calibration.quantise.network import QuantisedNetwork
from qwen_image_engine.export.graph.attention import query_norm
from qwen_image_engine.export.graph.nodes import add_constant
from qwen_image_engine.export.passes.quantised.linear_to_static import through_codes

COMPONENTS_IN_FP8 = ("step", "joint")
"""Components whose attention can be in FP8: those that run once in every step.

TensorRT for RTX 1.7.1 has a kernel for it where there are 32 keys at least (SM89 and SM120), and the text of a prefix
may be shorter. A prefix runs once for a picture.
"""


class Fp8Attention(InPlacePass):
    """Lowering pass for TensorRT and its twin: the three inputs of Attention pass through FP8.

    The attention's scale is in the queries already. The scale of the probabilities is not in the graph: TensorRT has it
    as a property of the attention (IAttention.normalization_quantize_scale, 1/448). A QuantizeLinear after a softmax
    would break the fusion.
    """

    def __init__(self, quantised: QuantisedNetwork) -> None:
        super().__init__()
        self._blocks = quantised.attention

    def call(self, model: ir.Model) -> PassResult:
        """Quantise the inputs of every Attention of an FP8 block of a component whose attention can be in FP8.

        The name of the queries' norm contains the block.
        """
        modified = False
        for node in _attentions(model.graph):
            name = _block(node)
            if name in self._blocks:
                scales = zip(("query", "key", "value"), self._blocks[name].scales(), strict=True)
                for index, (what, scale) in enumerate(scales):
                    value = node.inputs[index]
                    assert value is not None
                    step = fp8_scale_name(name, what)
                    node.replace_input_with(index, through_codes(model.graph, node, value, scale, "fp8", step))
                modified = True
        return PassResult(model, modified)


class DecomposeFp8Attention(InPlacePass):
    """Lowering pass for the twin: FP8 attention becomes two products with a softmax between them.

    The probabilities pass through FP8. The nodes compute in ONNX Runtime what TensorRT computes in its kernel.
    """

    def __init__(self, quantised: QuantisedNetwork) -> None:
        super().__init__()
        self._blocks = quantised.attention

    def call(self, model: ir.Model) -> PassResult:
        """Decompose every Attention that is FP8; leave all others."""
        modified = False
        for node in _attentions(model.graph):
            if _block(node) in self._blocks:
                _decompose(model.graph, node)
                modified = True
        return PassResult(model, modified)


def fp8_scale_name(block: str, what: str) -> str:
    """Return the name of the constant that holds the scale of a block's "query", "key" or "value"."""
    return f"{block}.attn.{what}_scale"


def _attentions(graph: ir.Graph) -> list[ir.Node]:
    """Return the Attention nodes of a component whose attention can be in FP8; none of another component."""
    return [node for node in graph if node.op_type == "Attention" and graph.name in COMPONENTS_IN_FP8]


def _block(node: ir.Node) -> str:
    """Return the block of an Attention: the part before ".attn." in the name of the queries' norm.

    Empty if its queries come from no norm.
    """
    norm = query_norm(node)
    value = norm.inputs[1] if norm is not None else None
    while value is not None and not value.is_initializer():
        producer = value.producer()
        value = producer.inputs[0] if producer is not None else None
    return (value.name or "").partition(".attn.")[0] if value is not None else ""


def _decompose(graph: ir.Graph, attention: ir.Node) -> None:
    q, k, v = attention.inputs[:3]
    assert q is not None
    assert k is not None
    assert v is not None
    assert attention.attributes.get_float("scale", 0.0) == 1.0
    transposed = ir.node("Transpose", [k], {"perm": [0, 1, 3, 2]})
    scores = ir.node("MatMul", [q, transposed.outputs[0]])
    nodes = [transposed, scores]
    mask = attention.inputs[3] if len(attention.inputs) > 3 else None
    if attention.attributes.get_int("is_causal", 0):
        shape = ir.node("Shape", scores.outputs)
        one = ir.tensor(np.array([1], dtype=np.int64))
        ones = ir.node("ConstantOfShape", shape.outputs, {"value": one})
        seen = ir.node("Trilu", ones.outputs, {"upper": 0})
        allowed = ir.node("Cast", seen.outputs, {"to": ir.DataType.BOOL})
        nodes += [shape, ones, seen, allowed]
        mask = allowed.outputs[0]
    if mask is not None:
        never = add_constant(graph, "never", np.array(-np.inf, dtype=np.float32))
        scores = ir.node("Where", [mask, scores.outputs[0], never])
        nodes.append(scores)
    softmax = ir.node("Softmax", scores.outputs, {"axis": -1})
    softmax.outputs[0].type = q.type
    graph.insert_before(attention, [*nodes, softmax])
    probabilities = through_codes(graph, attention, softmax.outputs[0], SOFTMAX, "fp8", "softmax_scale")
    product = ir.node("MatMul", [probabilities, v])
    graph.insert_before(attention, product)
    old, new = attention.outputs[0], product.outputs[0]
    new.type, new.shape = old.type, old.shape
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.remove(attention, safe=True)
