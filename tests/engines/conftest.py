"""A graph of the step's contract in small: rotary positions, prefix and target concatenated, attention, time."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from qwen_image_engine.engines.core.contract import Contract, Dims, TensorSpec, contract
from qwen_image_engine.engines.core.engine import Array

BACKENDS = ("onnxruntime", "openvino")
DIMS = Dims(
    encoder_hidden=12,
    encoder_head_dim=6,
    context=12,
    layers=1,
    heads=2,
    head_dim=4,
    channels=8,
    z=3,
    features=6,
    vision_head_dim=8,
    deepstack=2,
)  # channels = heads * head_dim, so that the graph needs no projection

Inputs = Mapping[str, Array]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    pytest.importorskip(name)
    return name


@pytest.fixture(scope="session")
def step_contract() -> Contract:
    return contract("step", DIMS)


@pytest.fixture(scope="session")
def time_weight() -> Array:
    return np.random.default_rng(0).standard_normal((DIMS.channels, 256)).astype(np.float32)


@pytest.fixture
def write_graph(tmp_path: Path) -> Callable[..., Path]:
    """`write_graph(contract, *nodes, initializers=(), weights={})`: a graph with the inputs and outputs of a contract.

    `weights` are arrays by name that the graph finds in a safetensors file beside it, after a tensor of 3 bytes.
    """

    def write(
        wanted: Contract,
        *nodes: onnx.NodeProto,
        initializers: tuple[onnx.TensorProto, ...] = (),
        weights: Inputs = MappingProxyType({}),
    ) -> Path:
        if weights:
            file = tmp_path / "weights.safetensors"
            save_file({"odd": np.zeros(3, np.uint8), **weights}, file)
            initializers += tuple(_external(name, file) for name in weights)
        graph = helper.make_graph(
            nodes,
            wanted.component,
            [_value(spec) for spec in wanted.inputs],
            [_value(spec) for spec in wanted.outputs],
            initializers,
        )
        opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
        path = tmp_path / f"{wanted.component}.onnx"
        path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=11).SerializeToString())
        return path

    return write


@pytest.fixture
def step_model(write_graph: Callable[..., Path], step_contract: Contract, time_weight: Array) -> Path:
    constants = (
        helper.make_tensor("flat", TensorProto.INT64, [3], [0, 0, DIMS.channels]),
        helper.make_tensor("ones", TensorProto.INT64, [2], [1, 1]),
    )
    return write_graph(step_contract, *_step_nodes(), initializers=constants, weights={"time.weight": time_weight})


@pytest.fixture
def step_inputs() -> Callable[..., dict[str, Array]]:
    """`step_inputs(batch=1, tokens=5, prefix=3)`: arrays that fit the contract."""

    def draw(batch: int = 1, tokens: int = 5, prefix: int = 3) -> dict[str, Array]:
        rng = np.random.default_rng(batch + 10 * tokens + 100 * prefix)
        angle = rng.uniform(0, 6, (tokens, DIMS.head_dim // 2))
        arrays = {
            "latents": rng.standard_normal((batch, tokens, DIMS.channels)),
            "time_features": rng.uniform(-1, 1, (1, 256)),
            "cos": np.cos(angle),
            "sin": np.sin(angle),
            "key_0": rng.standard_normal((batch, prefix, DIMS.heads, DIMS.head_dim)),
            "value_0": rng.standard_normal((batch, prefix, DIMS.heads, DIMS.head_dim)),
        }
        return {name: array.astype(np.float32) for name, array in arrays.items()}

    return draw


@pytest.fixture
def step_velocity(time_weight: Array) -> Callable[[Inputs], Array]:
    """The graph's computation, in numpy and float64."""

    def velocity(inputs: Inputs) -> Array:
        x = {name: array.astype(np.float64) for name, array in inputs.items()}
        target = x["latents"].reshape(*x["latents"].shape[:2], DIMS.heads, DIMS.head_dim)
        even, odd = target[..., 0::2], target[..., 1::2]
        cos, sin = x["cos"][:, None], x["sin"][:, None]
        rotated = np.stack((even * cos - odd * sin, even * sin + odd * cos), -1).reshape(target.shape)
        keys = np.concatenate((x["key_0"], rotated), 1)
        values = np.concatenate((x["value_0"], target), 1)
        scores = np.einsum("bqhd,bkhd->bhqk", rotated, keys) / np.sqrt(DIMS.head_dim)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = np.einsum("bhqk,bkhd->bqhd", weights, values).reshape(x["latents"].shape)
        return np.asarray(mixed + x["time_features"] @ time_weight.astype(np.float64).T)

    return velocity


def _step_nodes() -> list[onnx.NodeProto]:
    node = helper.make_node
    return [
        node("Shape", ["latents"], ["batch"], start=0, end=1),
        node("Concat", ["batch", "ones"], ["tables"], axis=0),
        node("Expand", ["cos", "tables"], ["cos_batch"]),
        node("Expand", ["sin", "tables"], ["sin_batch"]),
        node(
            "RotaryEmbedding", ["latents", "cos_batch", "sin_batch"], ["rotated"], interleaved=1, num_heads=DIMS.heads
        ),
        node("Reshape", ["key_0", "flat"], ["key_prefix"]),
        node("Reshape", ["value_0", "flat"], ["value_prefix"]),
        node("Concat", ["key_prefix", "rotated"], ["key"], axis=1),
        node("Concat", ["value_prefix", "latents"], ["value"], axis=1),
        node(
            "MultiHeadAttention", ["rotated", "key", "value"], ["mixed"], domain="com.microsoft", num_heads=DIMS.heads
        ),
        node("Gemm", ["time_features", "time.weight"], ["time"], transB=1),
        node("Add", ["mixed", "time"], ["velocity"]),
    ]


def _external(name: str, weights: Path) -> onnx.TensorProto:
    data = weights.read_bytes()
    header_bytes = int.from_bytes(data[:8], "little")
    entry = json.loads(data[8 : 8 + header_bytes])[name]
    start, end = entry["data_offsets"]
    tensor = onnx.TensorProto(
        name=name, dims=entry["shape"], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL
    )
    for key, value in (("location", weights.name), ("offset", 8 + header_bytes + start), ("length", end - start)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _value(spec: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(spec.name, helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)), spec.shape)
