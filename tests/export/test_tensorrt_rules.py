"""TensorRT's rules: kept by every exported graph, and each one broken is told by its name."""

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from qwen_image_engine.export.network_folder import MODEL_FILES
from qwen_image_engine.export.tensorrt_rules import RULES, broken_rules
from qwen_image_engine.runtime.command import main
from qwen_image_engine.runtime.manifest import read_manifest

Bundles = Callable[..., tuple[Path, Path]]
Change = Callable[[ir.Graph], None]


@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8"])
def test_every_graph_keeps_them(static_bundle: Bundles, precision: str) -> None:
    folder = static_bundle("narrow", "tensorrt", precision)[1]
    for name, entry in read_manifest(folder).components.items():
        assert broken_rules(ir.load(folder / entry.model)) == [], name


def first(graph: ir.Graph, *operators: str) -> ir.Node:
    return next(node for node in graph if node.op_type in operators)


def dequantised(graph: ir.Graph, *, stored: bool) -> ir.Node:
    """The first DequantizeLinear of a weight, or of activations."""
    found = (node for node in graph if node.op_type == "DequantizeLinear")
    return next(node for node in found if node.inputs[0].is_initializer() == stored)


def initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    value.shape, value.type = ir.Shape(array.shape), ir.TensorType(ir.tensor(array).dtype)
    graph.register_initializer(value)
    return value


def foreign_operator(graph: ir.Graph) -> None:
    first(graph, "Gemm").domain = "com.microsoft"


def other_edge(graph: ir.Graph) -> None:
    graph.inputs[0].type = ir.TensorType(ir.DataType.BFLOAT16)


def cached_attention(graph: ir.Graph) -> None:
    node = first(graph, "Attention")
    node.resize_inputs(6)
    node.replace_input_with(4, node.inputs[1])
    node.replace_input_with(5, node.inputs[2])


def masked_attention(graph: ir.Graph) -> None:
    node = first(graph, "Attention")
    mask = initializer(graph, "mask", np.ones((4, 4), bool))
    node.resize_inputs(4)
    node.replace_input_with(3, mask)


def scaled_attention(graph: ir.Graph) -> None:
    first(graph, "Attention").attributes["scale"] = ir.AttrFloat32("scale", 0.5)


def rounded_statistics(graph: ir.Graph) -> None:
    first(graph, "LayerNormalization").attributes["stash_type"] = ir.AttrInt64("stash_type", 16)


def rounded_angles(graph: ir.Graph) -> None:
    value = first(graph, "RotaryEmbedding").inputs[0]
    assert value is not None
    value.type = ir.TensorType(ir.DataType.BFLOAT16)


def wide_scale(graph: ir.Graph) -> None:
    node = first(graph, "QuantizeLinear")
    node.replace_input_with(1, initializer(graph, "wide", np.array(0.5, np.float32)))


def late_weight(graph: ir.Graph) -> None:
    """The codes of a weight through an operator, as where they are made when the graph runs."""
    node = dequantised(graph, stored=True)
    copy = ir.node("Identity", [node.inputs[0]])
    copy.outputs[0].type, copy.outputs[0].shape = node.inputs[0].type, node.inputs[0].shape
    graph.insert_before(node, copy)
    node.replace_input_with(0, copy.outputs[0])


def something_between(graph: ir.Graph) -> None:
    node = dequantised(graph, stored=False)
    between = ir.node("Identity", node.outputs)
    between.outputs[0].type, between.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
    for use in list(node.outputs[0].uses()):
        if use.node is not between:
            use.node.replace_input_with(use.idx, between.outputs[0])
    graph.insert_after(node, between)


def quantised_softmax(graph: ir.Graph) -> None:
    quantise = first(graph, "QuantizeLinear")
    softmax = ir.node("Softmax", [quantise.inputs[0]])
    softmax.outputs[0].type, softmax.outputs[0].shape = quantise.inputs[0].type, quantise.inputs[0].shape
    graph.insert_before(quantise, softmax)
    quantise.replace_input_with(0, softmax.outputs[0])


def one_scale_for_all_channels(graph: ir.Graph) -> None:
    node = dequantised(graph, stored=True)
    node.replace_input_with(1, initializer(graph, "one", np.array(0.5, ml_dtypes.bfloat16)))


def other_codes(graph: ir.Graph) -> None:
    node = dequantised(graph, stored=True)
    node.inputs[0].type = ir.TensorType(ir.DataType.INT8)


BROKEN: dict[str, tuple[str, str, Change]] = {
    "operators": ("bf16", "step", foreign_operator),
    "edge": ("bf16", "step", other_edge),
    "attention": ("bf16", "step", cached_attention),
    "mask": ("bf16", "step", masked_attention),
    "attention-scale": ("bf16", "step", scaled_attention),
    "norm-statistics": ("bf16", "step", rounded_statistics),
    "float32": ("bf16", "step", rounded_angles),
    "scales": ("fp8", "step", wide_scale),
    "stored-weights": ("fp8", "step", late_weight),
    "next-to-product": ("fp8", "step", something_between),
    "softmax": ("fp8", "step", quantised_softmax),
    "scale-form": ("int8", "step", one_scale_for_all_channels),
    "one-kind": ("fp8", "step", other_codes),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_is_told_by_its_name(static_bundle: Bundles, rule: str) -> None:
    precision, component, change = BROKEN[rule]
    folder = static_bundle("narrow", "tensorrt", precision)[1]
    model = ir.load(folder / MODEL_FILES[component])
    change(model.graph)
    found = {item.rule for item in broken_rules(model)}
    assert rule in found
    assert str(next(item for item in broken_rules(model) if item.rule == rule)).startswith(f"{rule}: ")


def test_another_opset_is_told(static_bundle: Bundles) -> None:
    model = ir.load(static_bundle("narrow", "tensorrt", "bf16")[1] / MODEL_FILES["step"])
    model.graph.opset_imports[""] = 18
    assert {item.rule for item in broken_rules(model)} == {"opset"}
    assert {*BROKEN, "opset"} == set(RULES)


def test_command(static_bundle: Bundles, bundle: Bundles, capsys: pytest.CaptureFixture[str]) -> None:
    folder = static_bundle("narrow", "tensorrt", "bf16")[1]
    assert main(["inspect", str(folder), "--check"]) == 0
    assert "✓ step" in capsys.readouterr().out
    assert main(["inspect", str(bundle("narrow")[1]), "--check"]) == 2
    assert "for cpu" in capsys.readouterr().err
