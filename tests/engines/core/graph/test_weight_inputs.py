"""Graphs that take their weights as inputs, some of them joined, against the package onnx and its evaluator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from qwen_image_engine.engines.core.dtypes import DTYPES
from qwen_image_engine.engines.core.graph.external_weights import read_graph
from qwen_image_engine.engines.core.graph.weight_inputs import weight_inputs, with_weights_as_inputs
from qwen_image_engine.export.trace import IR_VERSION, OPSET
from tests.support.bound_graph import BINDABLE, WEIGHTS, bound_graph, values_of, write_weights

Arrays = Mapping[str, NDArray[Any]]
RANDOM = np.random.default_rng(0)
SCALE = np.array(0.25, np.float32)
MATRICES = {name: RANDOM.standard_normal((rows, 8)).astype(np.float32) for name, rows in (("q", 6), ("k", 4), ("v", 6))}
CODES = {name: RANDOM.integers(-8, 8, (5, 8)).astype(ml_dtypes.float8_e4m3fn) for name in ("gate", "up")}


def model(nodes: Sequence[onnx.NodeProto], outputs: Sequence[str], constants: Arrays, folder: Path) -> memoryview:
    """A graph of the input `x`, (rows, 8), whose constants are in a file beside it, except zero points."""
    initializers, data = [], b""
    for name, values in constants.items():
        tensor = numpy_helper.from_array(values, name)
        if not name.endswith("zero_point"):
            place = {"location": "weights", "offset": len(data), "length": values.nbytes}
            data += tensor.raw_data
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
        initializers.append(tensor)
    (folder / "weights").write_bytes(data)
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", None]) for name in ("x", *outputs)]
    graph = helper.make_graph(nodes, "graph", ports[:1], ports[1:], initializers)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    (folder / "graph.onnx").write_bytes(made.SerializeToString())
    return read_graph(folder / "graph.onnx")


def gemm(rows: str, weight: str, result: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("Gemm", [rows, weight], [result], f"{result} product", **{"transB": 1, **attributes})


def attention(first: str = "x", axis: int = 1, **attributes: Any) -> list[onnx.NodeProto]:
    """Queries, keys and values, and a mean that reads the first two side by side."""
    return [
        helper.make_node("Neg", ["x"], ["y"]),
        gemm(first, "q", "queries"),
        gemm("x", "k", "keys", **attributes),
        gemm("x", "v", "values"),
        helper.make_node("Concat", ["queries", "keys"], ["both"], axis=axis),
        helper.make_node("ReduceMean", ["both"], ["mean"], keepdims=1),
        helper.make_node("Add", ["queries", "values"], ["sum"]),
        helper.make_node("Mul", ["keys", "mean"], ["scaled"]),
    ]


def gated(*, swapped: bool = False, codes: bool = True) -> list[onnx.NodeProto]:
    """SiLU(x W^T) * (x V^T)."""
    dequantised = [
        helper.make_node(
            "DequantizeLinear", [name, f"{name}_scale", f"{name}_zero_point"], [f"{name}_wide"], f"{name} dequantised"
        )
        for name in ("gate", "up")
    ]
    of = "{}_wide" if codes else "{}"
    return [
        *(dequantised if codes else ()),
        gemm("x", of.format("gate"), "g"),
        helper.make_node("Sigmoid", ["g"], ["s"]),
        helper.make_node("Mul", ["s", "g"] if swapped else ["g", "s"], ["silu"]),
        gemm("x", of.format("up"), "u"),
        helper.make_node("Mul", ["u", "silu"] if swapped else ["silu", "u"], ["hidden"]),
    ]


def quantised(scales: tuple[Any, Any] = (SCALE, SCALE), codes: Arrays = CODES) -> dict[str, NDArray[Any]]:
    zero = np.zeros((), ml_dtypes.float8_e4m3fn)
    scaled = {f"{name}_scale": np.asarray(scale) for name, scale in zip(codes, scales, strict=True)}
    return {**codes, **scaled, **{f"{name}_zero_point": zero for name in codes}}


def names(found: memoryview, folder: Path) -> list[str]:
    return [weight.name for weight in weight_inputs(found, folder)]


def same_results(found: memoryview, folder: Path, constants: Arrays, joined: str) -> onnx.GraphProto:
    """Compare a graph with the one that takes its weights as inputs, `joined` among them; return the latter."""
    onnx.checker.check_model(str(folder / "graph.onnx"))
    weights = weight_inputs(found, folder)
    assert joined in [weight.name for weight in weights]
    (folder / "after.onnx").write_bytes(with_weights_as_inputs(found, weights))
    onnx.checker.check_model(str(folder / "after.onnx"), full_check=True)
    after = onnx.load(folder / "after.onnx")
    x = np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32)
    own = {
        weight.name: np.concatenate([constants[piece.name] for piece in weight.pieces])
        if len(weight.pieces) > 1
        else constants[weight.name]
        for weight in weights
    }
    assert all(own[weight.name].shape == weight.shape for weight in weights)
    before = ReferenceEvaluator(onnx.load(folder / "graph.onnx")).run(None, {"x": x})
    for one, other in zip(before, ReferenceEvaluator(after).run(None, {"x": x, **own}), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    return after.graph


def test_products_that_the_graph_concatenates_are_one(tmp_path: Path) -> None:
    found = model(attention(), ["sum", "scaled", "mean"], MATRICES, tmp_path)
    graph = same_results(found, tmp_path, MATRICES, "q+k")
    operators = [node.op_type for node in graph.node]
    assert operators == ["Neg", "Gemm", "Split", "Gemm", "ReduceMean", "Add", "Mul"]
    assert graph.node[1].name == "queries product+keys product"
    assert list(graph.node[1].output) == ["both"]  # no copy of them
    assert [item.name for item in graph.input] == ["x", "q+k", "v"]


@pytest.mark.parametrize("swapped", [False, True])
def test_the_products_of_a_gated_mlp_of_codes_are_one(tmp_path: Path, swapped: bool) -> None:
    constants = quantised()
    found = model(gated(swapped=swapped), ["hidden"], constants, tmp_path)
    graph = same_results(found, tmp_path, constants, "gate+up")
    assert [node.op_type for node in graph.node] == ["DequantizeLinear", "Gemm", "Split", "Sigmoid", "Mul", "Mul"]
    assert [item.name for item in graph.input] == ["x", "gate+up"]


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        (attention(first="y"), MATRICES),
        (attention(alpha=2.0), MATRICES),
        (attention(beta=0.5), MATRICES),
        (attention(transA=1), MATRICES),
        (attention(axis=0), {**MATRICES, "k": MATRICES["q"]}),
        (attention(transB=0), {**MATRICES, "k": np.ones((8, 4), np.float32)}),
        ([*attention(), gemm("y", "k", "again")], MATRICES),
        ([*attention(), helper.make_node("Neg", ["q"], ["other"])], MATRICES),
        (gated(codes=False), {name: values.astype(np.float32) for name, values in CODES.items()}),
        (gated(), quantised((SCALE, SCALE * 2))),
        (gated(), quantised((np.full(5, SCALE), np.full(5, SCALE)))),
        (gated(), quantised() | {"up_zero_point": np.ones((), ml_dtypes.float8_e4m3fn)}),
        ([*gated(), helper.make_node("Neg", ["up_wide"], ["other"])], quantised()),
        ([*gated()[:-1], helper.make_node("Add", ["silu", "u"], ["hidden"])], quantised()),
    ],
    ids=[
        "other rows",
        "alpha",
        "beta",
        "transA",
        "rows concatenated",
        "not transposed",
        "read by two products",
        "read by another node",
        "16 bits",
        "two scales",
        "scales of columns",
        "zero points",
        "numbers that another node reads",
        "no gate",
    ],
)
def test_all_others_stay_apart(tmp_path: Path, nodes: list[onnx.NodeProto], constants: Arrays) -> None:
    found = model(nodes, [], constants, tmp_path)
    assert not [name for name in names(found, tmp_path) if "+" in name]


def test_scales_in_the_graph_are_compared_too(tmp_path: Path) -> None:
    def text(second: float) -> memoryview:
        constants = quantised((SCALE, SCALE))
        made = onnx.load_from_string(bytes(model(gated(), ["hidden"], constants, tmp_path)))
        for tensor in made.graph.initializer:
            if tensor.name.endswith("_scale"):
                value = second if tensor.name == "up_scale" else float(SCALE)
                tensor.CopyFrom(numpy_helper.from_array(np.array(value, np.float32), tensor.name))
        return memoryview(made.SerializeToString())

    assert names(text(float(SCALE)), tmp_path) == ["gate+up"]
    assert names(text(0.5), tmp_path) == ["gate", "up"]


def test_a_file_of_scales_that_is_not_there(tmp_path: Path) -> None:
    found = model(gated(), ["hidden"], quantised(), tmp_path)
    (tmp_path / "weights").unlink()
    with pytest.raises(OSError, match="weights"):
        weight_inputs(found, tmp_path)


def test_weights_become_inputs_behind_the_others(tmp_path: Path) -> None:
    write_weights(tmp_path / "weights.safetensors")
    found = memoryview(bound_graph("step", tmp_path / "weights.safetensors"))
    weights = weight_inputs(found, tmp_path)
    before = onnx.load_from_string(bytes(found))
    after = onnx.load_from_string(with_weights_as_inputs(found, weights))
    assert [item.name for item in after.graph.input] == ["image", *BINDABLE]
    pieces = "+".join(BINDABLE).split("+")
    kept = [name for name in WEIGHTS if name not in pieces]
    assert [item.name for item in after.graph.initializer] == [*kept, "queries+keys rows"]
    for item in after.graph.input[1:]:
        values = values_of(item.name)
        assert [axis.dim_value for axis in item.type.tensor_type.shape.dim] == list(values.shape)
        assert item.type.tensor_type.elem_type == DTYPES[values.dtype.name].onnx
    apart = [weight for weight in weights if len(weight.pieces) == 1]
    after = onnx.load_from_string(with_weights_as_inputs(found, apart))
    del after.graph.input[1:]
    left = [item for item in before.graph.initializer if item.name not in BINDABLE]
    del before.graph.initializer[:]
    before.graph.initializer.extend(left)
    assert after == before  # all else is as it was


def test_every_exported_graph_is_whole_with_its_weights_as_inputs(exported: Callable[..., Path]) -> None:
    for path in exported().rglob("*.onnx"):
        found = read_graph(path)
        weights = weight_inputs(found, path.parent)
        after = onnx.load_from_string(with_weights_as_inputs(found, weights))
        before = onnx.load(path, load_external_data=False)
        joined = [weight for weight in weights if weight.products is not None]
        pieces = sum(len(weight.pieces) for weight in weights)
        assert len(after.graph.input) == len(before.graph.input) + len(weights)
        assert len(after.graph.initializer) == len(before.graph.initializer) - pieces + len(joined)
        made = {value for node in before.graph.node for value in node.output}
        assert {value for node in after.graph.node for value in node.output} >= made
        if not joined:
            assert after.graph.node == before.graph.node
