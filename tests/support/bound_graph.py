"""Graphs whose weights are in a file beside them: matrices, vectors, codes and scales, kernels, and what is cast."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from qwen_image_engine.export.trace import IR_VERSION, OPSET
from qwen_image_engine.runtime.system.tensor_header import read_tensor_header

WEIGHTS: dict[str, NDArray[Any]] = {
    "matrix": np.arange(12, dtype=np.float32).reshape(3, 4),
    "table": np.arange(10, dtype=np.float32).reshape(5, 2),
    "vector": np.arange(4, dtype=np.float32),
    "column": np.arange(4, dtype=np.float32).reshape(4, 1, 1),
    "codes": np.arange(-4, 4, dtype=np.int8).reshape(2, 4),
    "scales": np.ones((2, 2), np.float32),
    "kernels": np.ones((2, 2, 3, 3), np.float32),
    "wide": np.ones((4, 2), np.float32),
    "queries": np.arange(12, dtype=np.float32).reshape(3, 4) / 8,
    "keys": np.arange(8, dtype=np.float32).reshape(2, 4) / 4,
}
"""What the graph reads, in the order of its initializers."""

BINDABLE = ("matrix", "table", "codes", "queries+keys")
"""The inputs of a plan for those of them that can be inputs."""

_DTYPES = {"float32": TensorProto.FLOAT, "int8": TensorProto.INT8}


def values_of(name: str) -> NDArray[Any]:
    """Return the numbers of an input of `BINDABLE`."""
    return np.concatenate([WEIGHTS[piece] for piece in name.split("+")])


def write_weights(path: Path) -> None:
    """Write the weight file of the graphs."""
    save_file(WEIGHTS, path)


def bound_graph(name: str, weights: Path, shapes: Mapping[str, tuple[int, ...]] | None = None) -> bytes:
    """Return the file of a graph that reads `WEIGHTS` in the file `weights` beside it; `shapes` are said of others."""
    places = {tensor.name: tensor for tensor in read_tensor_header(weights)}
    initializers = []
    for key, values in WEIGHTS.items():
        shape = (shapes or {}).get(key, values.shape)
        tensor = TensorProto(
            name=key, dims=shape, data_type=_DTYPES[values.dtype.name], data_location=TensorProto.EXTERNAL
        )
        place = {"location": weights.name, "offset": places[key].offset, "length": places[key].nbytes}
        for entry, value in place.items():
            tensor.external_data.add(key=entry, value=str(value))
        initializers.append(tensor)
    nodes = [
        helper.make_node("MatMul", ["matrix", "vector"], ["product"]),
        helper.make_node("DequantizeLinear", ["codes", "scales"], ["weights"], axis=0),
        helper.make_node("Conv", ["image", "kernels"], ["features"]),
        helper.make_node("Cast", ["wide"], ["narrow"], to=TensorProto.BFLOAT16),
        helper.make_node("Gemm", ["matrix", "queries"], ["q"], "first", transB=1),
        helper.make_node("Gemm", ["matrix", "keys"], ["k"], "second", transB=1),
        helper.make_node("Concat", ["q", "k"], ["both"], axis=1),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 2, "height", "width"])
    output = helper.make_tensor_value_info("product", TensorProto.FLOAT, [3])
    graph = helper.make_graph(nodes, name, [image], [output], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    return bytes(model.SerializeToString())
