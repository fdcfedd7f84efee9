"""The speed of this processor on matrix products in each precision: the ceiling of a step of linears alone."""

from collections.abc import Callable, Mapping
from statistics import median
from time import perf_counter

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from qwen_image_engine.engines.onnxruntime.cpu import session_options

ROWS = 1024


def ceilings(threads: int, channels: int, rounds: int) -> Mapping[str, float]:
    """Return 10^9 operations a second of a product (1024, channels) x (channels, 3 channels), a block's largest.

    Each is the median of `rounds`, which run in turn.
    """
    outputs = 3 * channels
    ways = {
        "fp32": in_torch(torch.float32, channels, outputs),
        "bf16": in_torch(torch.bfloat16, channels, outputs),
        "int8": in_onnxruntime(threads, channels, outputs),
    }
    for way in ways.values():
        way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            began = perf_counter()
            way()
            seconds[name].append(perf_counter() - began)
    return {name: 2e-9 * ROWS * channels * outputs / median(taken) for name, taken in seconds.items()}


def in_torch(dtype: torch.dtype, channels: int, outputs: int) -> Callable[[], object]:
    rows, weight = torch.randn(ROWS, channels).to(dtype), torch.randn(outputs, channels).to(dtype)
    return lambda: torch.nn.functional.linear(rows, weight)


def in_onnxruntime(threads: int, channels: int, outputs: int) -> Callable[[], object]:
    """Return a product of uint8 rows and int8 weights, as in the int8 graphs, without the operators around it."""
    rng = np.random.default_rng(0)
    weights = rng.integers(-127, 128, (channels, outputs), np.int8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["rows", "weights", "zero"], ["product"])],
        "product",
        [helper.make_tensor_value_info("rows", TensorProto.UINT8, [None, channels])],
        [helper.make_tensor_value_info("product", TensorProto.INT32, [None, outputs])],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(np.uint8(128), "zero")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()
    session = onnxruntime.InferenceSession(
        model, session_options(onnxruntime, threads), providers=["CPUExecutionProvider"]
    )
    rows = rng.integers(0, 256, (ROWS, channels), np.uint8)
    return lambda: session.run(None, {"rows": rows})
