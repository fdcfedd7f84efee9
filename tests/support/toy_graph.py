"""Smallest graph files that a bundle may hold."""

from onnx import helper

from qwen_image_engine.export.trace import IR_VERSION, OPSET


def toy_graph(name: str) -> bytes:
    """Return the file of a graph without nodes, which differs from others by its name."""
    graph = helper.make_graph([], name, [], [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    return bytes(model.SerializeToString())
