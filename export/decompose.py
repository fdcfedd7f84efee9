"""The few decompositions that a traced network needs before torch.onnx translates it, made node by node.

`ExportedProgram.run_decompositions` traces the whole program twice more to replace a handful of views and casts, which
is more than half of the time of an export.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from qwen_image_engine.engines.core.errors import QwenImageError

_aten: Any = torch.ops.aten


def decompose(program: ExportedProgram, table: object = None) -> ExportedProgram:
    """Replace the operations of a program that the translation to ONNX does not know, and return the program.

    No other operation of this project's networks has to be replaced; torch.onnx names those that it does not know.

    Args:
        program: the program, which is changed.
        table: the decompositions that torch.onnx proposes, of which none is needed.

    Raises:
        QwenImageError: an operation changes a tensor in place, which ONNX cannot; or makes a shape of which more than
            one size would have to be inferred.
    """
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if isinstance(node.target, OpOverload) and node.target._schema.is_mutable:
            raise QwenImageError(f"{node.target} changes a tensor in place; a network to export makes a new one")
        replace = _REPLACEMENTS.get(node.target) if node.op == "call_function" else None
        if replace is None:
            continue
        with graph.inserting_before(node):
            replace(program, node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def _cast(program: ExportedProgram, node: Node) -> None:
    source, dtype = _source(node), node.args[1]
    if source.meta["val"].dtype != dtype:
        _become(node, _aten._to_copy.default, source, dtype=dtype)
        return
    node.replace_all_uses_with(source)
    program.graph_signature.replace_all_uses(node.name, source.name)


def _square(program: ExportedProgram, node: Node) -> None:
    _become(node, _aten.pow.Tensor_Scalar, _source(node), 2)


def _chunk(program: ExportedProgram, node: Node) -> None:
    count, axis = (*node.args[1:], 0)[:2]
    assert isinstance(count, int)
    assert isinstance(axis, int)
    size = _source(node).meta["val"].shape[axis]
    _become(node, _aten.split.Tensor, _source(node), -(-size // count), axis)


def _reshape(program: ExportedProgram, node: Node) -> None:
    """Make a reshape to the sizes of the result, of which one may be inferred."""
    sizes = [size if isinstance(size, int) else _size(node.graph, size.node.expr) for size in node.meta["val"].shape]
    if sizes.count(-1) > 1:
        raise QwenImageError(
            f"{node} makes {node.meta['val'].shape}, expected one size at most that is no number times one symbol"
        )
    _become(node, _aten.reshape.default, _source(node), sizes)


def _size(graph: Graph, size: Any) -> int | Node:
    """Return a size as sympy has it, a number times one symbol, from an input's axis of that symbol; -1 for others."""
    factor, symbols = size.as_coeff_mul()
    for node in graph.find_nodes(op="placeholder"):
        for axis, there in enumerate(getattr(node.meta.get("val"), "shape", ())):
            if isinstance(there, int):
                continue
            unit, found = there.node.expr.as_coeff_mul()
            if found == symbols and len(symbols) == 1:
                return _scaled(graph, _axis_size(graph, node, axis, there), factor / unit)
    return -1


def _scaled(graph: Graph, size: Node, factor: Any) -> Node:
    """Return a size times sympy's fraction."""
    for by, operation in ((factor.p, operator.mul), (factor.q, operator.floordiv)):
        if by != 1:
            value = operation(size.meta["val"], by)
            size = graph.call_function(operation, (size, by))
            size.meta["val"] = value
    return size


def _axis_size(graph: Graph, source: Node, axis: int, size: torch.SymInt) -> Node:
    """Return the size of an input's axis, asked once and before everything else."""
    last = graph.find_nodes(op="placeholder")[-1]
    for user in source.users:
        if user.target == _aten.sym_size.int and user.args == (source, axis):
            last.append(user)
            return user
    with graph.inserting_after(last):
        found = graph.call_function(_aten.sym_size.int, (source, axis))
    found.meta["val"] = size
    return found


def _source(node: Node) -> Node:
    source = node.args[0]
    assert isinstance(source, Node)
    return source


def _become(node: Node, target: Any, *args: Any, **kwargs: Any) -> None:
    """Change the operation of a node, which keeps its name: the program's signature lists results by name."""
    node.target, node.args, node.kwargs = target, args, kwargs


_REPLACEMENTS: Mapping[Any, Callable[[ExportedProgram, Node], None]] = {
    _aten.to.dtype: _cast,
    _aten.square.default: _square,
    _aten.chunk.default: _chunk,
    _aten.unflatten.int: _reshape,
    _aten.flatten.using_ints: _reshape,
}
