"""Shapes as constants, in place of torch's chain of Shape, Squeeze, Reshape and Concat for each Reshape.

torch records the symbolic shape of every value. If a new shape keeps axes in place, a constant says so with ONNX's own
0 ("as in the input") and one -1. The graph computes all other shapes once, from the sizes of its inputs.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from qwen_image_engine.engines.core.contract import split_axis
from qwen_image_engine.export.graph.nodes import add_constant

Axes = list[int | str]

_FACTORED = re.compile(r"(\d+\*)?[A-Za-z_]\w*")


def width(value: ir.Value, axis: int = -1) -> int:
    """Return the size of an axis that no input changes, such as the channels.

    Raises:
        ValueError: the axis is symbolic, or the shape is not known.
    """
    size = value.shape[axis] if value.shape is not None else None
    if not isinstance(size, int):
        raise ValueError(f"{value.name}: axis {axis} of {value.shape} is not fixed")
    return size


def axes(value: ir.Value) -> Axes | None:
    """Return the sizes and symbols of a value's axes; None if torch recorded no shape."""
    if value.shape is None:
        return None
    return [axis if isinstance(axis, int) else str(axis.value) for axis in value.shape]


def reshape_target(before: Axes | None, after: Axes | None) -> list[int] | None:
    """Return a constant shape that reshapes `before` to `after` for every size of their symbols; None if none does."""
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
    """Make `node` reshape to the constant `target`, in which 0 means the input's size."""
    assert node.graph is not None
    name = "shape_" + "_".join("n" if size == -1 else str(size) for size in target)
    assert isinstance(node.graph, ir.Graph)
    node.replace_input_with(1, add_constant(node.graph, name, np.array(target, dtype=np.int64)))
    node.attributes.pop("allowzero", None)


def runtime_shape(graph: ir.Graph, wanted: Axes) -> ir.Value:
    """Return a value that holds the sizes `wanted`.

    It is a constant if no size is symbolic. Otherwise the graph computes it once, from inputs whose axes have the
    symbols.

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
            terms = [_read(graph, nodes, term) for term in _terms(axis)]
            total = terms[0]
            for term in terms[1:]:
                nodes.append(ir.node("Add", [total, term]))
                total = nodes[-1].outputs[0]
            parts.append(total)
    concat = ir.node("Concat", parts, {"axis": 0})
    output = concat.outputs[0]
    output.name, output.type, output.shape = name, ir.TensorType(ir.DataType.INT64), ir.Shape([len(wanted)])
    graph.insert_before(graph[0], [*nodes, concat])
    return output


def readable(graph: ir.Graph, wanted: Axes) -> bool:
    """Return whether the inputs of the graph have all symbols of `wanted`."""
    terms = [term for axis in wanted if isinstance(axis, str) for term in _terms(axis)]
    return all(_FACTORED.fullmatch(term) and _source(graph, term) for term in terms)


def _terms(axis: str) -> list[str]:
    """Return the terms of a sum: "text" and "image" of "text + image"."""
    return [term.strip() for term in axis.split("+")]


def _read(graph: ir.Graph, nodes: list[ir.Node], symbol: str) -> ir.Value:
    """Append nodes that read the size `symbol` to `nodes`, and return the size."""
    found = _source(graph, symbol)
    if found is None:
        raise ValueError(f"no input of {graph.name} has an axis {symbol}")
    nodes.append(ir.node("Shape", [found.value], {"start": found.axis, "end": found.axis + 1}))
    if found.divisor != 1:
        divisor = add_constant(graph, f"shape_{found.divisor}", np.array([found.divisor], dtype=np.int64))
        nodes.append(ir.node("Div", [nodes[-1].outputs[0], divisor]))
    return nodes[-1].outputs[0]


class _Source(NamedTuple):
    """The source of a size: an axis of `value`, whose size is divided by `divisor` without remainder."""

    value: ir.Value
    axis: int
    divisor: int


def _source(graph: ir.Graph, symbol: str) -> _Source | None:
    """Return the first input with an axis that is a multiple of `symbol`; None if no input has one.

    "8*height" is half of "16*height".
    """
    factor, name = split_axis(symbol)
    for value in graph.inputs:
        for index, axis in enumerate(axes(value) or []):
            if isinstance(axis, str) and _FACTORED.fullmatch(axis) and split_axis(axis)[1] == name:
                whole = split_axis(axis)[0]
                if whole % factor == 0:
                    return _Source(value, index, whole // factor)
    return None
