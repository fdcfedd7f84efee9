"""A linear as a product of integers: the engines against numpy on the same integers, where kernels are tempted."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from qwen_image_engine.calibration.quantise.network import QuantisedNetwork
from qwen_image_engine.engines.backends import load_engine
from qwen_image_engine.engines.core.contract import Contract, TensorSpec
from qwen_image_engine.engines.core.engine import Array
from qwen_image_engine.export.passes.quantised.linear_to_int8 import LinearToInt8
from qwen_image_engine.runtime.bundle.manifest_entries import QuantisedLayer

RNG = np.random.default_rng(0)
ROWS, CHANNELS, OUTPUTS = 37, 192, 72


def rows_spec(name: str, channels: int) -> TensorSpec:
    return TensorSpec(name, ("n", channels), "float32", "rows")


CONTRACT = Contract(
    "linears",
    "Two linears of the same rows.",
    (rows_spec("x", CHANNELS),),
    (rows_spec("y", OUTPUTS), rows_spec("z", OUTPUTS)),
)


def hadamard(size: int) -> Array:
    """By the definition: the sign of an entry is the parity of the bits that its row and column share."""
    signs = [[(-1) ** (row & column).bit_count() for column in range(size)] for row in range(size)]
    return np.array(signs) / np.sqrt(size)


def quantised_graph(rotation: int, codes: dict[str, Array], scales: dict[str, Array]) -> ir.Model:
    """The pass on two Gemms of one input, its weights then given `codes` and `scales`."""
    text = """<ir_version: 11, opset_import: ["" : 23]>
    linears (float[n, 192] x) => (float[n, 72] y, float[n, 72] z) {
        y = Gemm<transB = 1>(x, a.weight)
        z = Gemm<transB = 1>(x, b.weight)
    }""".replace("a.weight", "a_weight").replace("b.weight", "b_weight")
    proto = onnx.parser.parse_model(text)
    for name in codes:
        array = np.zeros((OUTPUTS, CHANNELS), np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, f"{name}_weight"))
    model = ir.from_proto(proto)
    for name in codes:
        value = model.graph.initializers.pop(f"{name}_weight")
        value.name = f"{name}.weight"
        model.graph.register_initializer(value)
    layers = {name: QuantisedLayer("int8", rotation) for name in codes}
    assert LinearToInt8(QuantisedNetwork(layers))(model).modified
    for name in codes:
        model.graph.initializers[f"{name}.weight"].const_value = ir.tensor(codes[name].astype(np.int8))
        model.graph.initializers[f"{name}.weight_scale"].const_value = ir.tensor(scales[name])
    return model


def integers(x: Array, rotation: int, codes: Array, scales: Array) -> Array:
    """The graph's meaning, in int64 and float64."""
    rotated = (x.reshape(-1, rotation).astype(np.float64) @ hadamard(rotation)).reshape(x.shape)
    largest = np.abs(rotated).max(axis=1, keepdims=True)
    units = np.rint(127 * rotated / np.where(largest > 0, largest, 1)).astype(np.int64)
    product: Array = (units @ codes.astype(np.int64).T) * (largest / 127) * scales
    return product


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("rotation", [1, 64])
@pytest.mark.parametrize("weights", ["normal", "largest"])
def test_engines_multiply_the_integers_that_numpy_does(
    tmp_path: Path, backend: str, rotation: int, weights: str
) -> None:
    pytest.importorskip(backend)
    x = RNG.standard_normal((ROWS, CHANNELS), dtype=np.float32)
    if weights == "normal":
        codes = {name: np.rint(RNG.standard_normal((OUTPUTS, CHANNELS)) * 35).clip(-127, 127) for name in "ab"}
    else:
        # Pairs of 255 * 127 do not fit into 16 bits: kernels that add them there are half off.
        codes = {name: RNG.choice([127, -127], (OUTPUTS, CHANNELS), p=[0.9, 0.1]) for name in "ab"}
        x = np.sign(np.abs(x)) * RNG.uniform(0.9, 1, x.shape).astype(np.float32)
    scales = {name: RNG.uniform(1e-3, 1e-2, OUTPUTS).astype(np.float32) for name in "ab"}
    x[5] = 0
    path = tmp_path / "linears.onnx"
    ir.save(quantised_graph(rotation, codes, scales), path)
    found = load_engine(backend, path, CONTRACT).run({"x": x})
    for name, output in (("a", found["y"]), ("b", found["z"])):
        expected = integers(x, rotation, codes[name], scales[name])
        assert np.isfinite(output).all()
        assert not output[5].any()
        # A value in a thousand lies so near the middle of two codes that rounding in fp32 decides.
        assert np.linalg.norm(output - expected) / np.linalg.norm(expected) < 1e-3
        # Most rows have none, and there nothing but fp32's rounding is left.
        errors = np.abs(output - expected).max(axis=1) / np.abs(expected).max()
        assert np.median(errors) < 1e-5


def test_linears_of_one_input_share_its_quantisation() -> None:
    codes = {name: np.ones((OUTPUTS, CHANNELS)) for name in "ab"}
    scales = {name: np.ones(OUTPUTS, np.float32) for name in "ab"}
    model = quantised_graph(64, codes, scales)
    counts = Counter(node.op_type for node in model.graph)
    assert counts["QuantizeLinear"] == counts["ReduceMax"] == 1
    assert counts["DequantizeLinear"] == 3
    assert counts["Gemm"] == counts["Mul"] == 2
    assert counts["Reshape"] == 2
    onnx.checker.check_model(ir.to_proto(model))
    x = RNG.standard_normal((5, CHANNELS), dtype=np.float32)
    found = ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": x})
    np.testing.assert_allclose(found[0], integers(x, 64, codes["a"], scales["a"]), rtol=1e-4, atol=1e-4)
