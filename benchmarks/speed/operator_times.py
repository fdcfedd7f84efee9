"""The time of a graph by kind of operator, from the profiles of ONNX Runtime and OpenVINO."""

import json
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import onnxruntime

from qwen_image_engine.engines.core.contract_check import Array
from qwen_image_engine.engines.onnxruntime.cpu import session_options
from qwen_image_engine.engines.openvino.cpu import InferencePrecision, compile_settings
from qwen_image_engine.engines.openvino.package import core

Inputs = Mapping[str, Array]
Operators = Iterable[tuple[str, float]]
"""Operators and their seconds. The text names type, kernel and the exported nodes that an operator stands for."""

# The first that matches counts. In the exported graphs every linear is a Gemm or named so, and every MatMul a rotation.
# Engines fuse an addition, gate or SiLU into its neighbour; it counts where it ended up.
KINDS: Mapping[str, re.Pattern[str]] = {
    kind: re.compile(pattern)
    for kind, pattern in (
        ("attention", "MultiHeadAttention|ScaledDotProductAttention|Softmax"),
        ("int8 linears", r"^(QGemm|MatMulInteger|FullyConnected \S*_I8\b)"),
        ("rotations", r"\bMatMul_\d"),
        ("other linears", r"^(Gemm|FullyConnected)\b"),
        ("quantising", r"^(Abs|ReduceMax|Max|Div|QuantizeLinear) |\b(Abs|ReduceMax|Max|Div|QuantizeLinear)_\d"),
        ("norms", "^(RMS|MVN)|LayerNormalization"),
        ("rotary", "^(RoPE|RotaryEmbedding)"),
        ("layout", "^(Transpose|Concat|Concatenation|Reshape|Reorder|Split|Expand|Broadcast)"),
    )
}
REST = "rest"


def onnxruntime_times(model: Path, inputs: Inputs, threads: int) -> dict[str, Any]:
    """Return the seconds of the second run by kind."""
    options = session_options(onnxruntime, threads)
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        for _ in range(2):
            session.run(None, dict(inputs))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    began = max(event["ts"] for event in events if event["name"] == "model_run")
    return by_kind(
        (f"{event['args']['op_name']} {event['name']}", event["dur"] / 1e6)
        for event in events
        if event["cat"] == "Node" and event["ts"] >= began
    )


def openvino_times(model: Path, inputs: Inputs, threads: int, precision: InferencePrecision) -> dict[str, Any]:
    """Return the mean seconds of five runs by kind. OpenVINO reports only means, and the first run allocates."""
    graph = core().read_model(str(model))
    settings = compile_settings(graph, threads, precision) | {"PERF_COUNT": True}
    compiled = core().compile_model(graph, "CPU", settings)
    request = compiled.create_infer_request()
    for _ in range(5):
        request.infer(dict(inputs), share_inputs=True)
    return by_kind(_executed(compiled))


def _executed(compiled: Any) -> Operators:
    for op in compiled.get_runtime_model().get_ordered_ops():
        facts = {
            name: op.rt_info[name].astype(str)
            for name in ("layerType", "primitiveType", "originalLayersNames", "execTimeMcs")
        }
        if facts["execTimeMcs"].isdigit():  # else "not_executed"
            what = " ".join(facts[name] for name in ("layerType", "primitiveType", "originalLayersNames"))
            yield what, int(facts["execTimeMcs"]) / 1e6


def by_kind(operators: Operators) -> dict[str, Any]:
    """Return the seconds and the share of each kind, and the total seconds."""
    seconds = dict.fromkeys([*KINDS, REST], 0.0)
    for what, taken in operators:
        kind = next((kind for kind, pattern in KINDS.items() if pattern.search(what)), REST)
        seconds[kind] += taken
    total = sum(seconds.values())
    return {
        "total_s": round(total, 4),
        "kinds": {kind: {"s": round(taken, 4), "share": round(taken / total, 4)} for kind, taken in seconds.items()},
    }
