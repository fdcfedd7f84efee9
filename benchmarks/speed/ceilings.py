"""The speed of this processor on matrix products in each precision: the ceiling of a step of linears alone."""

from collections.abc import Callable, Mapping
from statistics import median
from time import perf_counter

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from qwen_image_engine.engines.onnxruntime.cpu import session_options

ROWS, CHANNELS, OUTPUTS = 1024, 4096, 12288
ROUNDS = 5


def ceilings(threads: int) -> Mapping[str, float]:
    """Return 10^9 operations a second of a product (1024, 4096) x (4096, 12288): the median of rounds in turn."""
    ways = {"fp32": in_torch(torch.float32), "bf16": in_torch(torch.bfloat16), "int8": in_onnxruntime(threads)}
    for way in ways.values():
        way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            began = perf_counter()
            way()
            seconds[name].append(perf_counter() - began)
    return {name: 2e-9 * ROWS * CHANNELS * OUTPUTS / median(taken) for name, taken in seconds.items()}


def in_torch(dtype: torch.dtype) -> Callable[[], object]:
    rows, weight = torch.randn(ROWS, CHANNELS).to(dtype), torch.randn(OUTPUTS, CHANNELS).to(dtype)
    return lambda: torch.nn.functional.linear(rows, weight)


def in_onnxruntime(threads: int) -> Callable[[], object]:
    """Return a product of uint8 rows and int8 weights, as in the int8 graphs, without the operators around it."""
    rng = np.random.default_rng(0)
    weights = rng.integers(-127, 128, (CHANNELS, OUTPUTS), np.int8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["rows", "weights", "zero"], ["product"])],
        "product",
        [helper.make_tensor_value_info("rows", TensorProto.UINT8, [None, CHANNELS])],
        [helper.make_tensor_value_info("product", TensorProto.INT32, [None, OUTPUTS])],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(np.uint8(128), "zero")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()
    session = onnxruntime.InferenceSession(
        model, session_options(onnxruntime, threads), providers=["CPUExecutionProvider"]
    )
    rows = rng.integers(0, 256, (ROWS, CHANNELS), np.uint8)
    return lambda: session.run(None, {"rows": rows})
