"""Lowering pass: the modulation's scale becomes the scale of the layer norm."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from qwen_image_engine.export.graph.nodes import add_constant, constant
from qwen_image_engine.export.graph.shapes import axes


class ScaleIntoLayerNorm(InPlacePass):
    """Lowering pass for the CPU: LayerNormalization(x, 1) * scale becomes LayerNormalization(x, scale).

    The scale must be the same for every token. The pass saves one read and write of all tokens for each norm.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite the norms that only a product with a scale reads.

        A norm with a scale of its own, or with other readers, stays.
        """
        modified = False
        for node in list(model.graph):
            if node.op_type == "LayerNormalization" and len(node.inputs) == 2:
                modified |= _absorb(model.graph, node)
        return PassResult(model, modified)


def _absorb(graph: ir.Graph, norm: ir.Node) -> bool:
    own, uses = constant(norm.inputs[1]), norm.outputs[0].uses()
    if own is None or not (own == 1).all() or len(uses) != 1 or next(iter(uses)).node.op_type != "Mul":
        return False
    product = next(iter(uses)).node
    scale = next((value for value in product.inputs if value is not norm.outputs[0]), None)
    channels = own.size
    shape = axes(scale) if scale is not None else None
    if scale is None or shape is None or shape[-1] != channels or any(axis != 1 for axis in shape[:-1]):
        return False
    target = add_constant(graph, f"shape_{channels}", np.array([channels], dtype=np.int64))
    flat = ir.node("Reshape", [scale, target])
    flat.outputs[0].type, flat.outputs[0].shape = scale.type, ir.Shape([channels])
    new = ir.Node("", "LayerNormalization", [norm.inputs[0], flat.outputs[0]], norm.attributes.values())
    graph.insert_before(product, [flat, new])
    old = product.outputs[0]
    new.outputs[0].name, new.outputs[0].shape, new.outputs[0].type = old.name, old.shape, old.type
    ir.convenience.replace_all_uses_with(old, new.outputs[0], replace_graph_outputs=True)
    graph.remove([product, norm], safe=True)
    return True
