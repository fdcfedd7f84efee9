"""Lowering pass: the norms of queries and keys share one mean of squares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from qwen_image_engine.export.graph.nodes import add_constant, cast
from qwen_image_engine.export.graph.shapes import axes, runtime_shape, width

_FLOAT = ir.TensorType(ir.DataType.FLOAT)


@dataclass(frozen=True)
class _Norm:
    """An RMS norm of heads, the rows (batch * tokens, heads * channels) that it norms, and what their product reads."""

    node: ir.Node
    rows: ir.Value
    read: ir.Value

    @property
    def heads(self) -> int:
        """Number of heads."""
        return width(self.node.outputs[0], 2)

    @property
    def form(self) -> tuple[int, float]:
        """Channels of a head and epsilon; norms that share their squares are alike in both."""
        return width(self.node.outputs[0]), self.node.attributes.get_float("epsilon", 1e-5)


class JointSquareMean(InPlacePass):
    """Lowering pass for TensorRT, on rows: two RMS norms of heads, of products of the same rows, share one mean.

    With x the heads of queries and keys side by side, (batch * tokens * heads, channels) in float32:

        1 / sqrt(mean(x^2) + eps)

    is computed once, split by heads, and multiplied with the queries, the keys and the weights of the norms. It is the
    formula of RMSNormalization. The compiler writes the float32 input of each RMSNormalization for the kernel behind
    it. It writes none where the mean is of a flat view and the product is of another: a block of 4096 channels moves
    302 MB less at 4,096 tokens, and both norms become one kernel with the rotary embeddings behind them
    (docs/performance.md).
    """

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite the norms that come in pairs; leave all others."""
        pairs: dict[tuple[ir.Value, tuple[int, float]], list[_Norm]] = {}
        for node in model.graph:
            norm = _norm(node)
            if norm is not None:
                pairs.setdefault((norm.read, norm.form), []).append(norm)
        found = [(pair[0], pair[1]) for pair in pairs.values() if len(pair) == 2]
        for pair in found:
            _join(model.graph, *pair)
        return PassResult(model, bool(found))


def _norm(node: ir.Node) -> _Norm | None:
    """Return an RMS norm over the channels of heads whose input is a product in rows; None for any other node."""
    if node.op_type != "RMSNormalization" or len(axes(node.outputs[0]) or ()) != 4:
        return None
    source = node.inputs[0]
    producer = source.producer() if source is not None else None
    if producer is not None and producer.op_type == "Cast" and producer.inputs[0] is not None:
        producer = producer.inputs[0].producer()
    if producer is None or producer.op_type != "Reshape" or producer.inputs[0] is None:
        return None
    rows = producer.inputs[0]
    product = rows.producer()
    if product is None or product.op_type != "Gemm" or product.inputs[0] is None:
        return None
    return _Norm(node, rows, product.inputs[0])


def _join(graph: ir.Graph, first: _Norm, second: _Norm) -> None:
    factors = _factors(graph, first, second)
    for norm, factor in zip((first, second), factors, strict=True):
        values, weight = norm.node.inputs
        old = norm.node.outputs[0]
        unit = _float32("Mul", [values, factor], old.shape)
        scaled = _float32("Mul", [unit.outputs[0], weight], old.shape)
        graph.insert_before(norm.node, [unit, scaled])
        scaled.outputs[0].name = old.name
        ir.convenience.replace_all_uses_with(old, scaled.outputs[0], replace_graph_outputs=True)
        graph.remove(norm.node, safe=True)


def _factors(graph: ir.Graph, first: _Norm, second: _Norm) -> tuple[ir.Value, ...]:
    """Return 1 / sqrt(mean(x^2) + eps) of both norms, each (batch, tokens, heads, 1), by nodes before the first."""
    channels, epsilon = first.form
    heads = [first.heads, second.heads]
    batch, tokens = (axes(first.node.outputs[0]) or [])[:2]
    flat = add_constant(graph, f"shape_n_{channels}", np.array([-1, channels], dtype=np.int64))
    last = add_constant(graph, "last_axis", np.array([-1], dtype=np.int64))
    least = add_constant(graph, "norm_epsilon", np.array(epsilon, dtype=np.float32))
    counts = add_constant(graph, "heads_" + "_".join(map(str, heads)), np.array(heads, dtype=np.int64))
    by_token = runtime_shape(graph, [batch, tokens, sum(heads), 1])
    joint = ir.node("Concat", [first.rows, second.rows], {"axis": 1})
    joint.outputs[0].type, joint.outputs[0].shape = first.rows.type, ir.Shape([None, sum(heads) * channels])
    by_head = ir.node("Reshape", [joint.outputs[0], flat])
    by_head.outputs[0].type, by_head.outputs[0].shape = first.rows.type, ir.Shape([None, channels])
    wide = cast(by_head.outputs[0], ir.DataType.FLOAT)
    squares = _float32("Mul", [*wide.outputs, *wide.outputs], wide.outputs[0].shape)
    one = ir.Shape([None, 1])
    mean = _float32("ReduceMean", [squares.outputs[0], last], one, {"keepdims": 1})
    shifted = _float32("Add", [mean.outputs[0], least], one)
    root = _float32("Sqrt", shifted.outputs, one)
    inverse = _float32("Reciprocal", root.outputs, one)
    whole = _float32("Reshape", [inverse.outputs[0], by_token], ir.Shape([batch, tokens, sum(heads), 1]))
    parts = ir.node("Split", [whole.outputs[0], counts], {"axis": 2}, num_outputs=2)
    for output, count in zip(parts.outputs, heads, strict=True):
        output.type, output.shape = _FLOAT, ir.Shape([batch, tokens, count, 1])
    graph.insert_before(first.node, [joint, by_head, wide, squares, mean, shifted, root, inverse, whole, parts])
    return tuple(parts.outputs)


def _float32(
    operator: str, inputs: Sequence[ir.Value | None], shape: ir.Shape | None, attributes: dict[str, int] | None = None
) -> ir.Node:
    """Return a node that is in no graph yet, with one float32 output of this shape."""
    node = ir.node(operator, inputs, attributes)
    node.outputs[0].type, node.outputs[0].shape = _FLOAT, shape
    return node
