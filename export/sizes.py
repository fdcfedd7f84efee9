"""Shapes without arithmetic: what torch writes as a chain of Shape, Squeeze, Reshape and Concat for each Reshape.

torch records the symbolic shape of every value. Where a new shape keeps axes in place, ONNX's own 0 ("as in the input")
and one -1 say so in a constant; what is left is computed once a graph from the inputs' sizes.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from qwen_image_engine.export.constants import add_constant, constant

Axes = list[int | str]


class ConstantShapes(InPlacePass):
    """Every target: give Reshape a constant shape where its input's and output's symbolic shapes allow one."""

    def call(self, model: ir.Model) -> PassResult:
        """Reshapes whose shapes are not known, or move two free axes, stay as they are."""
        modified = False
        for node in model.graph:
            if node.op_type != "Reshape" or constant(node.inputs[1]) is not None:
                continue
            assert node.inputs[0] is not None
            target = reshape_target(axes(node.inputs[0]), axes(node.outputs[0]))
            if target is not None:
                set_reshape_target(node, target)
                modified = True
        return PassResult(model, modified)


def axes(value: ir.Value) -> Axes | None:
    """Sizes and symbols of a value, None where torch recorded none."""
    if value.shape is None:
        return None
    return [axis if isinstance(axis, int) else str(axis.value) for axis in value.shape]


def reshape_target(before: Axes | None, after: Axes | None) -> list[int] | None:
    """A constant shape that makes `after` of `before` for every size of their symbols, None where there is none."""
    if before is None or after is None:
        return None
    target: list[int] = []
    for index, axis in enumerate(after):
        if isinstance(axis, int):
            target.append(axis)
        elif index < len(before) and before[index] == axis:
            target.append(0)
        else:
            target.append(-1)
    return target if target.count(-1) <= 1 and all(size != 0 for size in after) else None


def set_reshape_target(node: ir.Node, target: list[int]) -> None:
    """Make `node` reshape to the constant `target`, 0 meaning the input's size."""
    assert node.graph is not None
    name = "shape_" + "_".join("n" if size == -1 else str(size) for size in target)
    assert isinstance(node.graph, ir.Graph)
    node.replace_input_with(1, add_constant(node.graph, name, np.array(target, dtype=np.int64)))
    node.attributes.pop("allowzero", None)


def runtime_shape(graph: ir.Graph, wanted: Axes) -> ir.Value:
    """A value that holds the sizes `wanted`: constant, or read once a graph from inputs that have its symbols.

    Raises:
        ValueError: no input of the graph has one of the symbols.
    """
    if all(isinstance(axis, int) for axis in wanted):
        return add_constant(graph, "shape_" + "_".join(map(str, wanted)), np.array(wanted, dtype=np.int64))
    name = "sizes_" + "_".join(map(str, wanted))
    for node in graph:
        if node.outputs[0].name == name:
            return node.outputs[0]
    parts: list[ir.Value] = []
    nodes: list[ir.Node] = []
    for axis in wanted:
        if isinstance(axis, int):
            parts.append(add_constant(graph, f"shape_{axis}", np.array([axis], dtype=np.int64)))
        else:
            source, index = _source(graph, axis)
            nodes.append(ir.node("Shape", [source], {"start": index, "end": index + 1}))
            parts.append(nodes[-1].outputs[0])
    concat = ir.node("Concat", parts, {"axis": 0})
    output = concat.outputs[0]
    output.name, output.type, output.shape = name, ir.TensorType(ir.DataType.INT64), ir.Shape([len(wanted)])
    graph.insert_before(graph[0], [*nodes, concat])
    return output


def _source(graph: ir.Graph, symbol: str) -> tuple[ir.Value, int]:
    for value in graph.inputs:
        found = axes(value) or []
        if symbol in found:
            return value, found.index(symbol)
    raise ValueError(f"no input of {graph.name} has an axis {symbol}")
