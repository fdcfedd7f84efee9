"""The seconds of one block's attention at the released width, for every implementation of a CPU engine.

    python -m benchmarks.speed.attention [--tokens 4096] [--prefix 128]

Target tokens attend to the prefix and to themselves, without a mask, with 32 heads of 128 channels. The implementations
run in turn on the same cores and the same inputs. Errors are against torch in fp32. ONNX Runtime's standard Attention
needs too much memory for large pictures: it holds the scores of all heads.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import TensorProto, helper

from benchmarks.common.environment import environment
from benchmarks.common.paths import RESULTS
from qwen_image_engine.engines.onnxruntime.cpu import session_options
from qwen_image_engine.engines.openvino.cpu import InferencePrecision, compile_settings
from qwen_image_engine.engines.openvino.package import core
from qwen_image_engine.export.verify.difference import difference

HEADS, DIM = 32, 128
Array = NDArray[np.float32]
Inputs = Mapping[str, Array]
Way = Callable[[Inputs], Array]


def graph(node: onnx.NodeProto) -> bytes:
    """Return a model of one attention node on (1, tokens, heads * dim)."""
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, None, HEADS * DIM]) for name in "qkvy"]
    model = helper.make_model(
        helper.make_graph([node], "attention", ports[:3], ports[3:]),
        opset_imports=[helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)],
        ir_version=11,
    )
    found: bytes = model.SerializeToString()
    return found


def blocked() -> bytes:
    return graph(
        helper.make_node("MultiHeadAttention", ["q", "k", "v"], ["y"], domain="com.microsoft", num_heads=HEADS)
    )


def standard() -> bytes:
    return graph(helper.make_node("Attention", ["q", "k", "v"], ["y"], q_num_heads=HEADS, kv_num_heads=HEADS))


def in_onnxruntime(model: bytes, threads: int) -> Way:
    session = onnxruntime.InferenceSession(
        model, session_options(onnxruntime, threads), providers=["CPUExecutionProvider"]
    )
    return lambda inputs: session.run(None, dict(inputs))[0]


def in_openvino(model: bytes, threads: int, precision: InferencePrecision) -> Way:
    read = core().read_model(model)
    request = core().compile_model(read, "CPU", compile_settings(read, threads, precision)).create_infer_request()
    return lambda inputs: request.infer(dict(inputs), share_inputs=True)["y"]


def in_torch(dtype: torch.dtype) -> Way:
    def run(inputs: Inputs) -> Array:
        q, k, v = (
            torch.from_numpy(inputs[name]).to(dtype).unflatten(-1, (HEADS, DIM)).transpose(1, 2) for name in "qkv"
        )
        found: Array = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).float().numpy()
        return found

    return torch.inference_mode()(run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--prefix", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=RESULTS / "attention.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rng = np.random.default_rng(0)
    lengths = {"q": options.tokens, "k": options.tokens + options.prefix, "v": options.tokens + options.prefix}
    inputs = {name: rng.standard_normal((1, length, HEADS * DIM), dtype=np.float32) for name, length in lengths.items()}
    ways: dict[str, Way] = {
        "torch fp32": in_torch(torch.float32),
        "torch bf16": in_torch(torch.bfloat16),
        "ONNX Runtime MultiHeadAttention": in_onnxruntime(blocked(), options.threads),
        "ONNX Runtime Attention-23": in_onnxruntime(standard(), options.threads),
        "OpenVINO f32": in_openvino(blocked(), options.threads, "f32"),
    }
    if "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        ways["OpenVINO bf16"] = in_openvino(blocked(), options.threads, "bf16")
    expected = ways["torch fp32"](inputs)
    errors = {name: difference(way(inputs), expected).relative_l2 for name, way in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            began = perf_counter()
            way(inputs)
            seconds[name].append(perf_counter() - began)
    products = 4 * options.tokens * (options.tokens + options.prefix) * HEADS * DIM
    rows: list[dict[str, Any]] = []
    for name, taken in seconds.items():
        rows.append(
            {
                "way": name,
                "median_s": median(taken),
                "rounds_s": taken,
                "gflop_per_s": products / median(taken) / 1e9,
                "relative_l2": errors[name],
            }
        )
        print(f"{name:32} {median(taken):7.3f} s  {rows[-1]['gflop_per_s']:5.0f} GFLOP/s  error {errors[name]:.1e}")
    document = {
        "what": f"seconds of one attention of {options.tokens} tokens to {options.tokens + options.prefix}, {HEADS} "
        f"heads of {DIM}, every way in turn, median of {options.rounds} rounds after one that warms up",
        "threads": options.threads,
        "results": rows,
        **environment(),
    }
    options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(options.output, file=sys.stderr)


if __name__ == "__main__":
    main()
