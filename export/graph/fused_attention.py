"""The attentions of a graph that a TensorRT plan must run in a fused kernel."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

WIDEST_FUSED_HEAD = 256
"""Channels of the widest head that TensorRT has a fused attention for.

The VAE's one head is as wide as its features.
"""


def fused_attentions(graph: ir.Graph) -> tuple[str, ...]:
    """Return the names of the Attention nodes that a plan must run fused.

    Unfused, each of them would hold tokens * tokens * heads numbers. Two kinds of attention may run unfused. A masked
    attention may have no fused kernel; the only mask is on the text after a reference image, which has few rows. The
    VAE's attention has one head, which is too wide: 0.5 GB of scores at 2048x2048. A head of unknown width must be
    fused.
    """
    return tuple(_named(graph))


def _named(graph: ir.Graph) -> Iterator[str]:
    for node in graph:
        masked = len(node.inputs) > 3 and node.inputs[3] is not None
        if node.op_type == "Attention" and not masked and (head_channels(node) or 0) <= WIDEST_FUSED_HEAD:
            yield node.name or node.outputs[0].name or "?"


def head_channels(attention: ir.Node) -> int | None:
    """Return the channels of one head of an Attention's queries; None if the graph does not record them.

    Queries are (batch, heads, tokens, channels), or (batch, tokens, heads * channels).
    """
    queries = attention.inputs[0]
    width = queries.shape[-1] if queries is not None and queries.shape is not None else None
    if not isinstance(width, int):
        return None
    return width // attention.attributes.get_int("q_num_heads", 1)
