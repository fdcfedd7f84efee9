"""Lowering pass: torch's chunk and unbind, which arrive as sequences, become Split."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from qwen_image_engine.export.graph.nodes import constant


class SequenceToSplit(InPlacePass):
    """Lowering pass for every target: SplitToSequence and its SequenceAt nodes become one Split.

    Few engines know sequences.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite the sequences that only SequenceAt nodes read; leave all others."""
        modified = False
        for node in list(model.graph):
            if node.op_type == "SplitToSequence":
                modified |= _to_split(model.graph, node)
        return PassResult(model, modified)


def _to_split(graph: ir.Graph, node: ir.Node) -> bool:
    source, axis = node.inputs[0], node.attributes.get_int("axis", 0)
    part = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    readers = [use.node for use in node.outputs[0].uses()]
    if source is None or source.shape is None or part is None or part.ndim:
        return False
    size = source.shape[axis]
    indices = [constant(reader.inputs[1]) for reader in readers if reader.op_type == "SequenceAt"]
    if not isinstance(size, int) or size % int(part) or len(indices) != len(readers) or any(i is None for i in indices):
        return False
    count = size // int(part)
    split = ir.node("Split", [source], {"axis": axis, "num_outputs": count}, num_outputs=count)
    graph.insert_before(node, split)
    shape = list(source.shape)
    shape[axis] = int(part)
    for output in split.outputs:
        output.shape, output.type = ir.Shape(shape), source.type
    for reader, index in zip(readers, indices, strict=True):
        assert index is not None
        old, new = reader.outputs[0], split.outputs[int(index)]
        if new.name is None:
            new.name = old.name
        old.replace_all_uses_with(new)
        graph.remove(reader, safe=True)
    graph.remove(node, safe=True)
    return True
