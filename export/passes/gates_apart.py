"""Lowering pass: the two products of a gated MLP read different inputs, so that they stay two products."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from qwen_image_engine.export.graph.nodes import add_constant


class GatesApart(InPlacePass):
    """Lowering pass for TensorRT in bf16, on rows: SiLU(y W^T) * (y V^T) becomes SiLU(y W^T) * (2 y V^T) / 2.

    Both factors are powers of two, which no dtype rounds. With constant weights the compiler makes one product of two
    that read the same rows, and SiLU and the product of both become a kernel that reads 24,576 numbers a token and
    writes 12,288. Two products of different rows stay apart, and the second of them computes SiLU and the product in
    its epilogue: 302 MB less in a block at 4,096 tokens. The compiler folds the factors away. Weights that are inputs
    of a plan are never merged; the factors cost nothing there.

    Products of codes have no such epilogue, and a second input would be quantised a second time. So the pass is not for
    targets of 8 bits.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite every gated MLP whose two products read the same rows; leave all others."""
        found = [site for node in model.graph if (site := _site(node)) is not None]
        for gated, product in found:
            _take_apart(model.graph, gated, product)
        return PassResult(model, bool(found))


def _site(node: ir.Node) -> tuple[ir.Node, ir.Node] | None:
    """Return the product SiLU(gate) * up and the Gemm behind `up`; None if the node is no such product."""
    if node.op_type != "Mul":
        return None
    for silu, up in (node.inputs, node.inputs[::-1]):
        gate, product = _silu(silu), _gemm(up)
        if gate is not None and product is not None and product.inputs[0] is gate.inputs[0]:
            return node, product
    return None


def _silu(value: ir.Value | None) -> ir.Node | None:
    """Return the Gemm whose result passes through SiLU to `value`; None if there is none."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Mul":
        return None
    for argument, sigmoid in (node.inputs, node.inputs[::-1]):
        maker = sigmoid.producer() if sigmoid is not None else None
        if maker is not None and maker.op_type == "Sigmoid" and maker.inputs[0] is argument:
            return _gemm(argument)
    return None


def _gemm(value: ir.Value | None) -> ir.Node | None:
    """Return the Gemm without a bias that makes `value`; None if another node does."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == "Gemm" and len(node.inputs) == 2 else None


def _take_apart(graph: ir.Graph, gated: ir.Node, product: ir.Node) -> None:
    rows, old = product.inputs[0], gated.outputs[0]
    assert rows is not None
    twice = _times(graph, rows, 2.0, "two")
    graph.insert_before(product, twice)
    product.replace_input_with(0, twice.outputs[0])
    half = _times(graph, old, 0.5, "half")
    graph.insert_after(gated, half)
    uses = [use for use in old.uses() if use.node is not half]
    assert not old.is_graph_output()
    for use in uses:
        use.node.replace_input_with(use.idx, half.outputs[0])


def _times(graph: ir.Graph, value: ir.Value, factor: float, name: str) -> ir.Node:
    """Return the product of a value and a constant of the same dtype, a node that is in no graph yet."""
    assert value.dtype is not None
    node = ir.node("Mul", [value, add_constant(graph, name, np.array(factor, dtype=value.dtype.numpy()))])
    node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
    return node
