"""Rules that compare a graph with its bundle's manifest and with the weights that the graph reads.

They find operations that became more nodes, other nodes or another precision. A graph without any
Attention breaks no rule about Attention. So Attention nodes are counted, against the projections of queries among the
weights, whose names are the checkpoint's, and against the manifest's number of blocks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import onnx_ir as ir

from qwen_image_engine.calibration.rules.linears import WEIGHT
from qwen_image_engine.engines.core.components import COMPONENTS
from qwen_image_engine.export.checks.rule import Expected, Finding, Rule, node_name, operators, rank

CODES = (ir.DataType.INT8, ir.DataType.FLOAT8E4M3FN)

_QUERIES = re.compile(r"\.(?:to_q|q_proj|qkv|to_qkv)\.weight$")
_OPERANDS = {"Gemm": 2, "MatMul": 2, "Conv": 2, "Attention": 3}


def _blocks(model: ir.Model) -> int:
    """Return the number of blocks with queries, by the weights that the graph holds."""
    return sum(bool(_QUERIES.search(name)) for name in model.graph.initializers)


def _attention_count(model: ir.Model, expected: Expected) -> Iterator[Finding]:
    component, blocks = str(model.graph.name), _blocks(model)
    row = COMPONENTS[component]
    if row.network == "transformer" and blocks != expected.blocks - row.returns_cache:
        yield component, f"queries of {blocks} blocks, the transformer has {expected.blocks}"
    found = sum(1 for _ in operators(model, "Attention"))
    wanted = blocks * (2 if component == "prefix_image" else 1)  # the image's, and that of the text behind it
    if found != wanted:
        yield component, f"{found} Attention nodes for {wanted}"


def _attention_form(model: ir.Model, _: Expected) -> Iterator[Finding]:
    causal = int(COMPONENTS[str(model.graph.name)].causal_mask)
    for node in operators(model, "Attention"):
        found = node.attributes
        if found.get_int("is_causal", 0) != causal:
            yield node_name(node), f"is_causal {found.get_int('is_causal', 0)} in {model.graph.name}"
        if found.get_float("softcap", 0.0) != 0:
            yield node_name(node), f"softcap {found.get_float('softcap', 0.0)}"


def _rope(model: ir.Model, expected: Expected) -> Iterator[Finding]:
    component = str(model.graph.name)
    row = COMPONENTS[component]
    if row.network == "transformer":
        wanted = 2 * expected.blocks - row.returns_cache
    else:
        wanted = 0 if row.network == "vae" else 2 * _blocks(model)
    found = [*operators(model, "RotaryEmbedding")]
    if len(found) != wanted:
        yield component, f"{len(found)} RotaryEmbedding nodes for {wanted}"
    for node in found:
        values, *tables = node.inputs
        ranks = [*map(rank, tables)]
        if ranks != [3, 3]:
            yield node_name(node), f"tables of the ranks {ranks}"
        heads = node.attributes.get_int("num_heads", 0)
        if rank(values) != 4 and not (rank(values) == 3 and heads > 0):
            yield node_name(node), f"values of rank {rank(values)} in {heads} heads"


def _precision(model: ir.Model, expected: Expected) -> Iterator[Finding]:
    for node in operators(model, *_OPERANDS):
        for value in node.inputs[: _OPERANDS[node.op_type]]:
            if value is not None and value.dtype != expected.dtype:
                yield node_name(node), f"{value.name} in {value.dtype}, the component is in {expected.dtype}"


def _time(model: ir.Model, expected: Expected) -> Iterator[Finding]:
    for features in model.graph.inputs:
        if features.name != "time_features":
            continue
        for use in features.uses():
            behind = [user.node for output in use.node.outputs for user in output.uses()]
            cast = use.node.op_type == "Cast" and use.node.outputs[0].dtype == expected.dtype
            if not cast or any(node.op_type not in ("Gemm", "MatMul", "QuantizeLinear") for node in behind):
                ways = ", ".join(node.op_type for node in behind) or "nothing"
                yield node_name(use.node), f"{use.node.op_type} to {use.node.outputs[0].dtype} with {ways} behind it"


def _quantised(model: ir.Model, expected: Expected) -> Iterator[Finding]:
    for name in expected.quantised:
        weight = model.graph.initializers.get(name + WEIGHT)
        readers = [use.node.op_type for use in weight.uses()] if weight is not None else []
        if weight is None or weight.dtype not in CODES or set(readers) != {"DequantizeLinear"}:
            found = f"{weight.dtype} read by {', '.join(readers) or 'nothing'}" if weight is not None else "not there"
            yield name, f"its weight is {found}"
    stored = sum(reads_codes(node) for node in operators(model, "DequantizeLinear"))
    if stored != len(expected.quantised):
        yield str(model.graph.name), f"{stored} stored weights in 8 bits, the manifest has {len(expected.quantised)}"
    made, read = (sum(1 for _ in operators(model, name)) for name in ("QuantizeLinear", "DequantizeLinear"))
    made -= sum(value.dtype in CODES for value in model.graph.outputs)
    read -= stored + sum(value.dtype in CODES for value in model.graph.inputs)
    if made != read:
        yield str(model.graph.name), f"{made} QuantizeLinear for {read} DequantizeLinear behind them"
    in_fp8 = sum(
        all(value is not None and _is_dequantised(value) for value in node.inputs[:3])
        for node in operators(model, "Attention")
    )
    if in_fp8 < expected.fp8_attention or (in_fp8 and not expected.fp8_attention):
        yield str(model.graph.name), f"{in_fp8} Attention nodes in FP8, the manifest has {expected.fp8_attention}"


def _float8(model: ir.Model, expected: Expected) -> Iterator[Finding]:
    """Yield findings about the nodes that `GemmFloat8` makes, which only graphs for CUDA have."""
    found = list(operators(model, "GemmFloat8"))
    if found and len(found) != len(expected.quantised):
        yield str(model.graph.name), f"{len(found)} GemmFloat8 nodes, the manifest has {len(expected.quantised)}"
    for node in found:
        rows, weight, bias, *scales = (*node.inputs, *[None] * 5)[:5]
        for operand in (rows, weight):
            if operand is None or operand.dtype != ir.DataType.FLOAT8E4M3FN:
                yield node_name(node), f"an operand in {operand.dtype if operand is not None else 'nothing'}"
        if bias is not None:
            yield node_name(node), "a third operand"
        for scale in scales:
            if scale is None or not scale.is_initializer() or scale.dtype != ir.DataType.FLOAT:
                yield node_name(node), f"a scale that is {f'in {scale.dtype}' if scale is not None else 'not there'}"
        if node.attributes.get_int("transB", 0) != 1 or node.attributes.get_int("dtype", 0) != expected.dtype:
            yield node_name(node), "another form than transB=1 with outputs in the component's dtype"


def reads_codes(node: ir.Node | None) -> bool:
    """Return whether a node reads a weight that is stored in 8 bits."""
    codes = node.inputs[0] if node is not None else None
    return codes is not None and codes.is_initializer() and codes.dtype in CODES


def _is_dequantised(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and node.op_type == "DequantizeLinear"


MANIFEST_RULES: Mapping[str, Rule] = {
    "attention-count": Rule("one Attention a block, of an image and the text behind it two", _attention_count),
    "attention-form": Rule("causal in text encoder and prefix alone, no softcap", _attention_form),
    "rope": Rule("RotaryEmbedding of queries and keys of every block, with a table of each token", _rope),
    "precision": Rule("operands of products and attention in the component's own dtype", _precision),
    "time-features": Rule("float32 up to the one Cast that their product reads", _time),
    "float8-products": Rule("GemmFloat8 of E4M3 codes, a constant float32 scale an operand, one a linear", _float8),
    "quantised": Rule("every quantised linear of the manifest, and no other; QuantizeLinear in pairs", _quantised),
}
"""Rules against the manifest, by name."""
