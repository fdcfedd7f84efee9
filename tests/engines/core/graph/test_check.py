"""Graphs of a stranger: refused before an engine reads them, in one sentence."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.core.graph.check import check_graph_file
from qwen_image_engine.engines.core.graph.weight_file import StoredTensor, WeightFile

NAME = "vae/graph.onnx"
TENSORS = (StoredTensor("other", "F32", (3, 1, 1), 48, 12), StoredTensor("weight", "F32", (1, 1, 2, 2), 60, 16))
LISTED = {"vae/weights.safetensors": WeightFile(TENSORS)}
LONG = "x" * 300_000

Change = Callable[[onnx.ModelProto], object]


def model() -> onnx.ModelProto:
    """Return a Mul and a Conv, whose weight of 4 values is at byte 60 of a weight file."""
    weight = TensorProto(
        name="weight", dims=[1, 1, 2, 2], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL
    )
    for key, value in (("location", "weights.safetensors"), ("offset", "60"), ("length", "16")):
        weight.external_data.add(key=key, value=value)
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1, 4, 4]) for name in ("x", "y")]
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["square"]),
        helper.make_node("Conv", ["square", "weight"], ["y"], group=1, kernel_shape=[2, 2], pads=[0, 0, 0, 0]),
    ]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)


def check(path: Path, changed: onnx.ModelProto) -> None:
    path.write_bytes(changed.SerializeToString())
    check_graph_file("vae_decoder_mid", path, NAME, LISTED)


def place(key: str, value: str) -> Change:
    def change(m: onnx.ModelProto) -> None:
        for entry in m.graph.initializer[0].external_data:
            if entry.key == key:
                entry.value = value

    return change


def function(m: onnx.ModelProto) -> None:
    m.functions.add(name="F", domain="F").node.add(op_type="F", domain="F")


def subgraph(m: onnx.ModelProto) -> None:
    attribute = m.graph.node[1].attribute.add(name="group", type=onnx.AttributeProto.GRAPH)
    attribute.g.name = "branch"


HOSTILE: dict[str, tuple[Change, str]] = {
    "unlisted weights": (place("location", "other.bin"), "'other.bin', which the manifest does not list"),
    "weights above": (place("location", "../vae/weights.safetensors"), "does not list"),
    "weights by another name": (place("location", "./weights.safetensors"), "does not list"),
    "long location": (place("location", LONG), "300002 characters"),
    "offset": (place("offset", "64"), "at byte 64 of 'weights.safetensors', whose header has 'weight', F32"),
    "offset of another": (place("offset", "48"), "whose header has 'other', F32 [3, 1, 1] from byte 48"),
    "offset behind": (place("offset", "76"), "whose header has nothing"),
    "other dtype": (lambda m: setattr(m.graph.initializer[0], "data_type", 16), "16 bytes of 'weights.safetensors'"),
    "other shape": (lambda m: m.graph.initializer[0].dims.__setitem__(slice(None), [1, 1, 4]), "F32 [1, 1, 4]"),
    "negative offset": (place("offset", "-1"), "no number"),
    "long offset": (place("offset", "9" * 400), "no number"),
    "length": (place("length", "17"), "expected 16"),
    "second location": (
        lambda m: m.graph.initializer[0].external_data.add(key="location", value="other.bin"),
        "not one location",
    ),
    "function": (function, "the field 25"),
    "subgraph": (subgraph, "the field 6"),
    "domain": (lambda m: setattr(m.graph.node[0], "domain", "com.microsoft"), "operator 'com.microsoft::Mul'"),
    "operator": (lambda m: setattr(m.graph.node[0], "op_type", "Loop"), "operator 'Loop'"),
    "long operator": (lambda m: setattr(m.graph.node[0], "op_type", LONG), "300002 characters"),
    "opset": (lambda m: setattr(m.opset_import[0], "version", 7), "opset 7"),
    "foreign opset": (lambda m: m.opset_import.add(domain="F", version=1), "the domain 'F'"),
    "IR": (lambda m: setattr(m, "ir_version", 3), "IR version 3, expected 11"),
    "group": (lambda m: setattr(m.graph.node[1].attribute[0], "i", 2**31), "Conv.group is 2147483648, expected 1"),
    "negative pad": (lambda m: m.graph.node[1].attribute[2].ints.append(-1), "Conv.pads is -1"),
    "attribute": (lambda m: m.graph.node[0].attribute.add(name="axis", i=1, type=2), "the attribute 'axis'"),
    "axis": (lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[1], "dim_value", 2**40), "1099511627776"),
    "size": (lambda m: m.graph.initializer[0].dims.append(2**40), "the axes"),
    "rank": (lambda m: m.graph.initializer[0].dims.extend([1] * 9), "the axes"),
    "dtype": (lambda m: setattr(m.graph.initializer[0], "data_type", TensorProto.STRING), "the type 8"),
    "sequence": (lambda m: m.graph.input[0].type.sequence_type.SetInParent(), "the field 4"),
    "circle": (lambda m: m.graph.node[0].input.__setitem__(0, "y"), "'y', which nothing before it writes"),
    "inputs": (lambda m: m.graph.node[0].input.append("x"), "Mul with 3 inputs"),
    "inner bytes": (
        lambda m: m.graph.initializer.add(name="short", dims=[2], data_type=1, raw_data=bytes(4)),
        "4 bytes, expected 8",
    ),
    "integers": (
        lambda m: m.graph.initializer.add(name="pads", data_type=7, raw_data=(2**40).to_bytes(8, "little")),
        "holds 1099511627776",
    ),
}


def test_a_graph_as_exports_write_it_is_accepted(tmp_path: Path) -> None:
    check(tmp_path / "graph.onnx", model())


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_graphs_are_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    change, message = HOSTILE[name]
    changed = model()
    change(changed)
    with pytest.raises(QwenImageError) as caught:
        check(tmp_path / "graph.onnx", changed)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(tmp_path))


def test_places_are_compared_with_the_files_of_each_bundle(tmp_path: Path) -> None:
    """The same graph in another bundle, whose weights are elsewhere."""
    check(tmp_path / "graph.onnx", model())
    moved = {"vae/weights.safetensors": WeightFile([StoredTensor("weight", "F32", (1, 1, 2, 2), 64, 16)])}
    with pytest.raises(QwenImageError, match=r"at byte 60 of 'weights\.safetensors', whose header has nothing"):
        check_graph_file("vae_decoder_mid", tmp_path / "graph.onnx", NAME, moved)
    with pytest.raises(QwenImageError, match="which the manifest does not list"):
        check_graph_file("vae_decoder_mid", tmp_path / "graph.onnx", "text_encoder/graph.onnx", LISTED)


def test_files_cut_short_are_refused(tmp_path: Path) -> None:
    path, whole = tmp_path / "graph.onnx", model().SerializeToString()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(QwenImageError, match="export the bundle again"):
            check_graph_file("vae_decoder_mid", path, NAME, LISTED)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(QwenImageError, match="cannot read"):
        check_graph_file("vae_decoder_mid", tmp_path / "graph.onnx", NAME, LISTED)
