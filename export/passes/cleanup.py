"""Lowering passes that remove leftovers of tracing and of other passes."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult
from onnx_ir.passes.common import (
    ClearMetadataAndDocStringPass,
    CommonSubexpressionEliminationPass,
    IdentityEliminationPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
    TopologicalSortPass,
)

from qwen_image_engine.export.graph.nodes import constant
from qwen_image_engine.export.graph.shapes import axes, readable, reshape_target, runtime_shape, set_reshape_target


class MergeReshapes(InPlacePass):
    """Lowering pass for every target: a Reshape of a Reshape reads the input of the first one.

    A Reshape that changes nothing is removed.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Merge in the order of the graph, so that a chain merges in one pass."""
        modified = False
        for node in list(model.graph):
            if node.op_type == "Reshape":
                modified |= _merge(model.graph, node)
        return PassResult(model, modified)


class MergeConstants(InPlacePass):
    """Lowering pass for every target: equal small constants become one constant.

    Equal nodes can be recognised then. Weights are left alone.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Keep the first of equal constants, under the name that it has."""
        graph = model.graph
        first: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        modified = False
        for name, value in list(graph.initializers.items()):
            array = constant(value)
            if array is None:
                continue
            kept = first.setdefault((str(array.dtype), array.shape, array.tobytes()), value)
            if kept is not value:
                value.replace_all_uses_with(kept)
                del graph.initializers[name]
                modified = True
        return PassResult(model, modified)


class Cleanup(InPlacePass):
    """Lowering pass for every target: equal nodes become one, and unused nodes are removed.

    Names and notes of the traced Python are removed too.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Run onnx-ir's passes and the merging of constants. Nodes are sorted: unused ones are found in one round."""
        return ir.passes.Sequential(
            *(() if _is_sorted(model.graph) else (TopologicalSortPass(),)),
            RemoveUnusedNodesPass(),
            IdentityEliminationPass(),
            MergeConstants(),
            CommonSubexpressionEliminationPass(),
            RemoveUnusedOpsetsPass(),
            ClearMetadataAndDocStringPass(),
        )(model)


def _is_sorted(graph: ir.Graph) -> bool:
    """Return whether every node comes after the nodes that it reads. No graph here has a graph inside.

    This takes a small part of the time of a sort that changes nothing.
    """
    done: set[ir.Node | None] = {None}
    for node in graph:
        if any(value is not None and value.producer() not in done for value in node.inputs):
            return False
        done.add(node)
    return True


def _merge(graph: ir.Graph, node: ir.Node) -> bool:
    value, output = node.inputs[0], node.outputs[0]
    producer = value.producer() if value is not None else None
    modified = False
    if producer is not None and producer.op_type == "Reshape" and producer.inputs[0] is not None:
        source = producer.inputs[0]
        wanted = axes(output)
        target = reshape_target(axes(source), wanted)
        if target is not None or (wanted is not None and readable(graph, wanted)):
            node.replace_input_with(0, source)
            value, modified = source, True
            if target is not None:
                set_reshape_target(node, target)
            elif wanted is not None:
                node.replace_input_with(1, runtime_shape(graph, wanted))
    if value is not None and axes(value) is not None and axes(value) == axes(output) and not output.is_graph_output():
        output.replace_all_uses_with(value)
        graph.remove(node, safe=True)
        modified = True
    return modified
