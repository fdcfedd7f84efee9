"""Attentions that an engine must fuse, by the shapes in the graph."""

import onnx_ir as ir
import pytest

from qwen_image_engine.export.graph.fused_attention import fused_attentions

Axes = list[int | str | None]


def graph(axes: Axes | None, *, heads: int | None = None, masked: bool = False) -> ir.Graph:
    """An Attention whose queries have these axes, none for an unknown rank."""
    values = [ir.Value(name=name) for name in ("queries", "keys", "values", "mask")]
    values[0].shape = None if axes is None else ir.Shape(axes)
    attributes = {} if heads is None else {"q_num_heads": heads}
    node = ir.node("Attention", values if masked else values[:3], attributes, name="Attention_4")
    return ir.Graph(values, node.outputs, nodes=[node], opset_imports={"": 23})


@pytest.mark.parametrize(
    ("axes", "options", "fused"),
    [
        ([1, 24, "tokens", 128], {}, True),
        ([1, 24, "tokens", 256], {}, True),
        ([1, 1, "tokens", 384], {}, False),
        ([1, 1, "tokens", 64], {}, False),
        ([1, 2, "tokens", 64], {}, True),
        ([1, 24, "tokens", 384], {}, False),
        ([1, "heads", "tokens", 64], {}, True),
        ([1, "tokens", 3072], {"heads": 24}, True),
        ([1, "tokens", 384], {"heads": 1}, False),
        ([1, 24, "tokens", "channels"], {}, True),
        ([1, 24, "tokens", None], {}, True),
        (None, {}, True),
        ([1, 24, "tokens", 128], {"masked": True}, False),
    ],
)
def test_what_is_unknown_must_be_fused(axes: Axes | None, options: dict[str, int], fused: bool) -> None:
    assert fused_attentions(graph(axes, **options)) == (("Attention_4",) if fused else ())
