"""Rules for graphs that TensorRT 11 runs, by name.

A graph that breaks a rule is refused. If TensorRT runs such a graph at all, it does so in slower kernels or in another
precision than the graph states, and says so in a log at most. Sources: the ONNX parser of TensorRT 11.0
(github.com/onnx/onnx-tensorrt), and NVIDIA's notes on fused attention and explicit quantisation.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

import onnx_ir as ir

from qwen_image_engine.engines.core.components import COMPONENTS
from qwen_image_engine.export.checks.manifest_rules import CODES, MANIFEST_RULES, reads_codes
from qwen_image_engine.export.checks.rule import Expected, Finding, Rule, node_name, operators, rank
from qwen_image_engine.export.graph.attention import query_norm
from qwen_image_engine.export.graph.nodes import constant
from qwen_image_engine.export.trace import IR_VERSION, OPSET

_OPERATORS = frozenset(
    (
        *("Add", "Attention", "Cast", "CastLike", "Clip", "Concat", "Conv", "DepthToSpace", "DequantizeLinear", "Div"),
        *("Expand", "Gather", "Gelu", "Gemm", "LayerNormalization", "LessOrEqual", "MatMul", "Max", "Min", "Mul"),
        *("Pad", "QuantizeLinear", "RMSNormalization", "Range", "Reciprocal", "ReduceMean", "ReduceSum"),
        *("ReduceSumSquare", "Reshape", "Resize", "RotaryEmbedding", "Shape", "Sigmoid", "Slice", "Split", "Sqrt"),
        *("Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze"),
    )
)
"""All operators of the exported graphs. Softmax is part of Attention, and no node has a subgraph."""

_PRODUCTS = ("Gemm", "MatMul", "Conv", "Attention")
_CACHE = ("key_", "value_", "own_key_", "own_value_")
_IN_FLOAT32 = ("RotaryEmbedding", "Resize", "ReduceSumSquare", "Reciprocal", "Sqrt")
_SUMS = ("ReduceMean", "ReduceSum")
"""Sums of a norm that was taken apart. The VAE's encoder averages pixels with them."""

_EDGE = (ir.DataType.FLOAT, ir.DataType.INT64)


@dataclass(frozen=True)
class Broken:
    """A violation of a rule: the rule's name, the place, the state found there, and the expected state."""

    rule: str
    where: str
    found: str
    expected: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.where}: {self.found}, expected {self.expected}"


def broken_rules(model: ir.Model, expected: Expected, names: Collection[str] | None = None) -> list[Broken]:
    """Return every place where `model` breaks one of `RULES`, or one of the rules `names`.

    `model` is a component's graph, and its name is the component.
    """
    return [
        Broken(name, where, found, rule.expected)
        for name, rule in RULES.items()
        if names is None or name in names
        for where, found in rule.findings(model, expected)
    ]


def _opset(model: ir.Model, _: Expected) -> Iterator[Finding]:
    if dict(model.opset_imports) != {"": OPSET} or model.ir_version > IR_VERSION:
        yield str(model.graph.name), f"opsets {dict(model.opset_imports)}, IR {model.ir_version}"


def _operators(model: ir.Model, _: Expected) -> Iterator[Finding]:
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.domain:
            yield node_name(node), f"{node.domain}::{node.op_type}"
        elif node.op_type not in _OPERATORS:
            yield node_name(node), node.op_type
    for function in model.functions.values():
        yield function.name, "a function of the model"


def _edge(model: ir.Model, expected: Expected) -> Iterator[Finding]:
    for value in (*model.graph.inputs, *model.graph.outputs):
        cache = (ir.DataType.FLOAT8E4M3FN,) if value.name in expected.codes else (expected.dtype,)
        if value.dtype not in (cache if (value.name or "").startswith(_CACHE) else _EDGE):
            yield str(value.name), str(value.dtype)


def _attention(model: ir.Model, _: Expected) -> Iterator[Finding]:
    for node in operators(model, "Attention"):
        if len(node.outputs) != 1:
            yield node_name(node), f"{len(node.outputs)} outputs"
        if any(value is not None for value in node.inputs[4:]):
            yield node_name(node), "a cache among its inputs"
        if len(node.inputs) > 3 and node.inputs[3] is not None and node.attributes.get_int("is_causal", 0) == 1:
            yield node_name(node), "a mask beside is_causal"
        if "softmax_precision" in node.attributes:
            yield node_name(node), "a precision of its softmax"
        ranks = {found for value in node.inputs[:3] if (found := rank(value)) is not None}
        wanted = {3} if {"q_num_heads", "kv_num_heads"} <= node.attributes.keys() else {4}
        if ranks != wanted:
            yield node_name(node), f"operands of the ranks {sorted(ranks)}"


def _mask(model: ir.Model, _: Expected) -> Iterator[Finding]:
    masked = [node for node in operators(model, "Attention") if len(node.inputs) > 3 and node.inputs[3] is not None]
    for node in masked:
        shape = node.inputs[3].shape if node.inputs[3] is not None else None
        rows = str(shape[-2]) if shape is not None and len(shape) > 1 else "?"
        if model.graph.name != "prefix_image" or "image" in rows:
            yield node_name(node), f"a mask of {rows} rows"


def _scale(model: ir.Model, _: Expected) -> Iterator[Finding]:
    for node in operators(model, "Attention"):
        norm, factor = query_norm(node), node.attributes.get("scale")
        if norm is None and COMPONENTS[str(model.graph.name)].query_norms:
            yield node_name(node), "queries that come from no norm, or that others read on the way"
            continue
        scaled = norm.inputs[1] if norm is not None else _scaled_queries(node)
        product = scaled.producer() if scaled is not None else None
        if factor is None or factor.as_float() != 1.0 or product is None or product.op_type != "Mul":
            yield node_name(node), f"scale {'left to it' if factor is None else factor.as_float()}"


def _scaled_queries(attention: ir.Node) -> ir.Value | None:
    """Return the value that queries without a norm come from; None if it is an input of the graph.

    That value stands before the queries are rounded, turned and laid out.
    """
    value = attention.inputs[0]
    while value is not None and (node := value.producer()) is not None:
        if node.op_type not in ("Cast", "Reshape", "RotaryEmbedding", "Transpose"):
            return value
        value = node.inputs[0]
    return None


def _statistics(model: ir.Model, _: Expected) -> Iterator[Finding]:
    for node in operators(model, "RMSNormalization", "LayerNormalization"):
        if node.attributes.get_int("stash_type", 1) != 1:
            yield node_name(node), f"statistics in {ir.DataType(node.attributes.get_int('stash_type')).name}"


def _norm_precision(model: ir.Model, _: Expected) -> Iterator[Finding]:
    for node in operators(model, "LayerNormalization"):
        value = node.inputs[0]
        if value is None or value.dtype != ir.DataType.FLOAT:
            yield node_name(node), f"{value.dtype if value is not None else 'nothing'}"


def _names(model: ir.Model, _: Expected) -> Iterator[Finding]:
    seen = set(model.graph.initializers)
    for node in model.graph:
        if not node.name or node.name in seen:
            yield node_name(node), f"the name {node.name or '(none)'}"
        seen.add(node.name or "")


def _weight_files(model: ir.Model, _: Expected) -> Iterator[Finding]:
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        location = PurePosixPath(str(tensor.location))
        if location.is_absolute() or ".." in location.parts:
            yield name, f"the file {location}"
        expected = tensor.size * tensor.dtype.itemsize
        if tensor.length != expected:
            yield name, f"{tensor.length} bytes for {expected}"


def _float32(model: ir.Model, _: Expected) -> Iterator[Finding]:
    sums = () if COMPONENTS[str(model.graph.name)].network == "vae" else _SUMS
    for node in operators(model, *_IN_FLOAT32, *sums):
        value = node.inputs[0]
        if value is not None and value.dtype not in (ir.DataType.FLOAT, ir.DataType.INT64):
            yield node_name(node), f"{node.op_type} in {value.dtype or 'a dtype that the graph does not say'}"


def _scales(model: ir.Model, _: Expected) -> Iterator[Finding]:
    for node in operators(model, "QuantizeLinear", "DequantizeLinear"):
        scale, zero = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
        values = node.inputs[0] if node.op_type == "QuantizeLinear" else node.outputs[0]
        if scale is None or not scale.is_initializer():
            yield node_name(node), "a scale that is computed"
        elif values is not None and values.dtype is not None and scale.dtype != values.dtype:
            yield node_name(node), f"a scale in {scale.dtype} of values in {values.dtype}"
        zeros = constant(zero) if zero is not None else None
        if zeros is not None and zeros.astype("float32").any():
            yield node_name(node), "a zero point that is not 0"
        numbers = constant(scale)
        if numbers is not None and not (numbers.astype("float32") > 0).all():
            yield node_name(node), "a scale that is not positive"


def _stored(model: ir.Model, _: Expected) -> Iterator[Finding]:
    for node in operators(model, "Gemm", "MatMul"):
        values = [value.producer() if value is not None else None for value in node.inputs[:2]]
        rows, weight = (item is not None and item.op_type == "DequantizeLinear" for item in values)
        if rows != weight:
            yield node_name(node), "one operand of two in 8 bits"
        elif weight and not reads_codes(values[1]):
            yield node_name(node), "a weight that is quantised as it runs"


def _next(model: ir.Model, _: Expected) -> Iterator[Finding]:
    for node in operators(model, "DequantizeLinear"):
        codes = node.inputs[0]
        if codes is not None and codes.is_graph_input():
            continue  # keys or values, which pass through codes once more behind their concatenation
        for use in node.outputs[0].uses():
            if use.node.op_type not in _PRODUCTS:
                yield node_name(node), f"{use.node.op_type} behind it"


def _softmax(model: ir.Model, _: Expected) -> Iterator[Finding]:
    for node in operators(model, "Softmax"):
        if any(use.node.op_type == "QuantizeLinear" for use in node.outputs[0].uses()):
            yield node_name(node), "QuantizeLinear behind it"


def _channels(model: ir.Model, _: Expected) -> Iterator[Finding]:
    for node in operators(model, "DequantizeLinear"):
        codes, scale = node.inputs[0], node.inputs[1]
        if codes is None or scale is None or scale.shape is None:
            continue
        weight = codes.is_initializer() and codes.dtype == ir.DataType.INT8
        if len(scale.shape) != int(weight) or (weight and node.attributes.get_int("axis", 1) != 0):
            yield (
                node_name(node),
                f"scales {tuple(scale.shape)} of {'a weight' if codes.is_initializer() else 'activations'}",
            )


def _kinds(model: ir.Model, _: Expected) -> Iterator[Finding]:
    found = {node.inputs[0].dtype for node in operators(model, "DequantizeLinear") if node.inputs[0] is not None}
    if found.issuperset(CODES):
        yield str(model.graph.name), "INT8 and FP8"


RULES: Mapping[str, Rule] = {
    "opset": Rule(f"opset {OPSET} of ai.onnx alone and IR {IR_VERSION} at most", _opset),
    "operators": Rule("one of ai.onnx that exports hold: the parser reads its name and not its domain", _operators),
    "edge": Rule(
        "float32 (indices int64) at the host's edge, bf16 keys and values, or FP8 where the manifest says so", _edge
    ),
    "attention": Rule(
        "one output, no cache, no precision of the softmax, a mask or is_causal, operands of rank 4, or 3 with both "
        "numbers of heads: other forms are not parsed",
        _attention,
    ),
    "mask": Rule("no mask, but for the text behind a reference image: masks may break the fusion", _mask),
    "attention-scale": Rule("1, and 1/sqrt(head_dim) in the queries: in the weight of their norm, if any", _scale),
    "norm-statistics": Rule("float32", _statistics),
    "layer-norm": Rule("float32: the parser drops stash_type", _norm_precision),
    "names": Rule("a name of its own for every node, by which the audit finds it in the engine", _names),
    "weight-files": Rule("bytes of the tensor's size, in a file beside or below the graph", _weight_files),
    "float32": Rule("float32: angles of late tokens, sums and roots of norms, and Resize has no bf16", _float32),
    "scales": Rule("a constant in the dtype of the values, and zero point 0", _scales),
    "stored-weights": Rule("both operands in 8 bits, the weight stored so", _stored),
    "next-to-product": Rule("a product, with nothing between, but for keys and values that come in as codes", _next),
    "softmax": Rule("no codes of its own: a scale of probabilities is a property of the attention", _softmax),
    "scale-form": Rule("one scale a tensor, and of an INT8 weight one an output channel", _channels),
    "one-kind": Rule("one kind of codes: INT8 and FP8 go together from Blackwell on", _kinds),
    **MANIFEST_RULES,
}
"""All rules for TensorRT, by name."""

SHARED_WITH_CUDA = (
    *("edge", "attention", "mask", "attention-scale", "norm-statistics", "float32"),
    *("attention-count", "attention-form", "rope", "precision", "time-features", "float8-products"),
)
"""Names of the rules that `--target cuda` keeps too.

Except for quantised nodes, graphs for CUDA come from the same passes.
"""
