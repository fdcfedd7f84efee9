"""Lowering passes: attention reads and writes (batch, tokens, heads * head_dim), without transposes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from qwen_image_engine.export.graph.nodes import add_constant
from qwen_image_engine.export.graph.shapes import Axes, axes, width

_HEADS_SECOND = [0, 2, 1, 3]


@dataclass(frozen=True)
class _Site:
    """An Attention-23 in 4-D with the transposes around it; q, k, v are (batch, tokens, heads, head_dim)."""

    node: ir.Node
    qkv: tuple[ir.Value, ir.Value, ir.Value]
    mask: ir.Value | None  # (queries, keys)
    result: ir.Node  # the Reshape to (batch, tokens, heads * head_dim)

    @property
    def heads(self) -> tuple[int, int]:
        """Heads of the queries, and heads of the keys and values."""
        return width(self.qkv[0], 2), width(self.qkv[1], 2)

    @property
    def causal(self) -> bool:
        return self.node.attributes.get_int("is_causal", 0) == 1


class AttentionToMultiHeadAttention(InPlacePass):
    """Lowering pass for the CPU: attention becomes com.microsoft.MultiHeadAttention, which works in blocks.

    It takes attention without grouped heads and without a mask. Attention-23 of ONNX Runtime holds tokens^2 * heads
    floats: 34 GB at 2048x2048. In blocks, the scores are never in memory at once. The VAE's one head over 16,384 tokens
    has 1.1 GB of scores, but all activations together take 0.9 GB. OpenVINO reads both operators. Causal
    attention must be square, or ONNX Runtime aligns its triangle otherwise than ONNX does.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite each Attention that `_site` recognises and that has neither grouped heads nor a mask."""
        modified = False
        for site in _sites(model.graph):
            heads, key_heads = site.heads
            if heads != key_heads or site.mask is not None:
                continue
            attributes: dict[str, int | float] = {"num_heads": heads}
            if site.causal:
                attributes["unidirectional"] = 1
            scale = site.node.attributes.get("scale")
            if scale is not None:
                attributes["scale"] = scale.as_float()
            model.graph.opset_imports["com.microsoft"] = 1
            _replace(model.graph, site, "MultiHeadAttention", attributes, "com.microsoft")
            modified = True
        return PassResult(model, modified)


class AttentionWithoutTransposes(InPlacePass):
    """Lowering pass for CPU and CUDA: Attention-23 takes (batch, tokens, heads * head_dim), grouped heads included.

    On a CPU it serves two attentions: the text encoder, whose 1,100 tokens need 330 MB of scores at the released size,
    and the text after a reference image, which has a mask. On CUDA it serves all: flash attention reads this layout,
    and ONNX Runtime would transpose queries and result back to it. With the four transposes of the graph that is 12.9
    GB in a step at 1024x1024.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite each Attention that `_site` recognises."""
        sites = _sites(model.graph)
        for site in sites:
            heads, key_heads = site.heads
            attributes: dict[str, int | float] = {"q_num_heads": heads, "kv_num_heads": key_heads}
            attributes["is_causal"] = int(site.causal)
            scale = site.node.attributes.get("scale")
            if scale is not None:
                attributes["scale"] = scale.as_float()
            _replace(model.graph, site, "Attention", attributes, "")
        return PassResult(model, bool(sites))


def _sites(graph: ir.Graph) -> list[_Site]:
    sites = (_site(node) for node in graph if node.op_type == "Attention" and node.domain == "")
    return [site for site in sites if site is not None]


def _site(node: ir.Node) -> _Site | None:
    """Return an Attention with its transposes; None if it has a cache or does not stand between transposes."""
    if len([value for value in node.inputs[4:] if value is not None]) or len(node.outputs) != 1:
        return None
    transposes = [value.producer() if value is not None else None for value in node.inputs[:3]]
    readers = [use.node for use in node.outputs[0].uses()]
    if len(readers) != 1:
        return None
    qkv = []
    for transpose in (*transposes, readers[0]):
        if transpose is None or transpose.op_type != "Transpose" or transpose.inputs[0] is None:
            return None
        if list(transpose.attributes.get_ints("perm", [])) != _HEADS_SECOND:
            return None
        qkv.append(transpose.inputs[0])
    readers = [use.node for use in readers[0].outputs[0].uses()]
    if len(readers) != 1 or readers[0].op_type != "Reshape":
        return None
    result, q = axes(readers[0].outputs[0]), axes(qkv[0])
    if result is None or q is None or result[:2] != q[:2] or len(result) != 3:
        return None
    return _Site(node, (qkv[0], qkv[1], qkv[2]), node.inputs[3] if len(node.inputs) > 3 else None, readers[0])


def _replace(graph: ir.Graph, site: _Site, op: str, attributes: dict[str, int | float], domain: str) -> None:
    inputs = [_heads_merged(graph, site.node, value) for value in site.qkv]
    inputs += [] if site.mask is None else [site.mask]
    node = ir.node(op, inputs, attributes, domain=domain)
    graph.insert_before(site.node, node)
    old, new = site.result.outputs[0], node.outputs[0]
    new.name, new.shape, new.type = old.name, old.shape, old.type
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    transpose = site.result.inputs[0]
    assert transpose is not None
    after = transpose.producer()
    assert after is not None
    graph.remove([site.result, after, site.node], safe=True)


def _heads_merged(graph: ir.Graph, before: ir.Node, value: ir.Value) -> ir.Value:
    """Return `value` (batch, tokens, heads, head_dim) as (batch, tokens, heads * head_dim)."""
    producer = value.producer()
    merged = [*(axes(value) or [])[:2], width(value, 2) * width(value, 3)]
    if producer is not None and producer.op_type == "Concat" and len(value.uses()) == 1:
        parts = [_heads_merged(graph, producer, part) for part in producer.inputs if part is not None]
        node = ir.node("Concat", parts, {"axis": 1})
    elif producer is not None and producer.op_type == "Reshape" and _source_axes(producer) == merged:
        source = producer.inputs[0]
        assert source is not None
        return source
    else:
        target = add_constant(graph, f"shape_0_0_{merged[2]}", np.array([0, 0, merged[2]], dtype=np.int64))
        node = ir.node("Reshape", [value, target])
    output = node.outputs[0]
    output.type, output.shape = value.type, ir.Shape(merged)
    graph.insert_before(before, node)
    return output


def _source_axes(node: ir.Node) -> Axes | None:
    return axes(node.inputs[0]) if node.inputs[0] is not None else None
