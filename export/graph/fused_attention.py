"""The attentions of a graph that a TensorRT plan must run in a fused kernel."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

WIDEST_FUSED_HEAD = 256
"""Channels of the widest head that TensorRT has a fused attention for."""

FEWEST_FUSED_HEADS = 2
"""Heads of an attention from which TensorRT for RTX 1.7.1 fuses it at every number of tokens.

With one head, of 32 to 256 channels, it fuses from 4,096 tokens, and not at 2,048 or fewer.
"""


def fused_attentions(graph: ir.Graph) -> tuple[str, ...]:
    """Return the names of the Attention nodes that a plan must run fused.

    Unfused, each of them would hold tokens * tokens * heads numbers. Two kinds of attention may run unfused. A masked
    attention may have no fused kernel; the only mask is on the text after a reference image, which has few rows. The
    VAE's attention has one head, for which the compiler may see no gain, or no kernel where it is as wide as the
    features of a full-size VAE: 0.5 GB of scores at 2048x2048. An attention of unknown heads must be fused.
    """
    return tuple(_named(graph))


def _named(graph: ir.Graph) -> Iterator[str]:
    for node in graph:
        masked = len(node.inputs) > 3 and node.inputs[3] is not None
        if node.op_type != "Attention" or masked or (head_channels(node) or 0) > WIDEST_FUSED_HEAD:
            continue
        if (heads(node) or FEWEST_FUSED_HEADS) >= FEWEST_FUSED_HEADS:
            yield node.name or node.outputs[0].name or "?"


def heads(attention: ir.Node) -> int | None:
    """Return the number of heads of an Attention's queries; None if the graph does not record it.

    Queries are (batch, heads, tokens, channels), or (batch, tokens, heads * channels) with a count as attribute.
    """
    count = attention.attributes.get_int("q_num_heads", 0)
    queries = attention.inputs[0]
    shape = queries.shape if queries is not None else None
    found = shape[1] if not count and shape is not None and len(shape) == 4 else count
    return found if isinstance(found, int) and found > 0 else None


def head_channels(attention: ir.Node) -> int | None:
    """Return the channels of one head of an Attention's queries; None if the graph does not record them.

    Queries are (batch, heads, tokens, channels), or (batch, tokens, heads * channels).
    """
    queries = attention.inputs[0]
    width = queries.shape[-1] if queries is not None and queries.shape is not None else None
    if not isinstance(width, int):
        return None
    return width // attention.attributes.get_int("q_num_heads", 1)
