"""Bytes of a graph's weights, against the package onnx and the safetensors file that holds them."""

from collections.abc import Callable
from pathlib import Path

import onnx
from safetensors import safe_open

from qwen_image_engine.engines.core.graph.weight_bytes import weight_bytes


def test_every_graph_reads_a_part_of_its_network(exported: Callable[..., Path]) -> None:
    bundle = exported()
    found = {path.relative_to(bundle): weight_bytes(path) for path in bundle.rglob("*.onnx")}
    assert len(found) == 8
    for path, count in found.items():
        model = onnx.load(bundle / path, load_external_data=False)
        assert count == sum(
            int(entry.value)
            for tensor in model.graph.initializer
            for entry in tensor.external_data
            if entry.key == "length"
        )
        assert 0 < count <= (bundle / path.parent / "weights.safetensors").stat().st_size


def test_shared_data_count_once(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    graph = onnx.GraphProto()
    for name, offset in (("a", 0), ("b", 64), ("c", 64)):
        tensor = graph.initializer.add(name=name, dims=[16], data_type=onnx.TensorProto.FLOAT)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", "weights"), ("offset", str(offset)), ("length", "64")):
            tensor.external_data.add(key=key, value=value)
    graph.initializer.add(name="inline", dims=[1], data_type=onnx.TensorProto.FLOAT, float_data=[1.0])
    path.write_bytes(onnx.ModelProto(graph=graph).SerializeToString())
    assert weight_bytes(path) == 128


def test_all_graphs_of_a_network_read_every_weight(exported: Callable[..., Path]) -> None:
    bundle = exported()
    with safe_open(bundle / "vision" / "weights.safetensors", "np") as stored:
        held = sum(stored.get_tensor(name).nbytes for name in stored.keys())  # noqa: SIM118
    assert weight_bytes(bundle / "vision" / "model.onnx") == held
