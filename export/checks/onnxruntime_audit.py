"""The audit of an int8 graph: ONNX Runtime must run every quantised linear as a product of integers.

If ONNX Runtime does not fuse a pattern, it reports no error. It runs the linear in fp32 on dequantised weights, 6 times
slower. So the audit counts the nodes of the graph as ONNX Runtime has optimised it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx

from qwen_image_engine.engines.backends import require
from qwen_image_engine.engines.core.errors import QwenImageError

_INTEGER_KERNELS = frozenset({"QGemm", "MatMulIntegerToFloat", "MatMulInteger", "DynamicQuantizeMatMul"})


def audit(model: Path, weights: Collection[str]) -> None:
    """Check that a kernel for integers reads each of `weights` in the graph `model`.

    The whole graph is optimised as the engine does it, with two exceptions. `session.x64quantprecision` would rename
    weights. Constant folding would read some of them, because the prefix's modulation does not depend on its inputs.
    Weights are not prepacked and stay in their mapped file unread, so the audit holds no more than the graph itself.

    Raises:
        QwenImageError: no kernel for integers reads a weight, or ONNX Runtime is not installed or cannot load the
            graph.
    """
    package = require("onnxruntime")
    with _beside(model) as optimised:
        options = package.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(optimised)
        options.add_session_config_entry("session.disable_prepacking", "1")
        try:
            package.InferenceSession(
                str(model), options, providers=["CPUExecutionProvider"], disabled_optimizers=["ConstantFolding"]
            )
        except Exception as error:  # the package's errors have no base class of their own
            raise QwenImageError(f"{model.name}: ONNX Runtime cannot load what was exported ({error})") from error
        nodes = onnx.load(str(optimised), load_external_data=False).graph.node
    integer = {name for node in nodes if node.op_type in _INTEGER_KERNELS for name in node.input}
    slow = sorted(set(weights) - integer)
    if slow:
        more = f" and {len(slow) - 5} more" if len(slow) > 5 else ""
        raise QwenImageError(
            f"{model.name}: {len(slow)} of {len(weights)} quantised linears do not run as products of integers in ONNX "
            f"Runtime {package.__version__}: {', '.join(slow[:5])}{more}; keep them in fp32 with --exclude"
        )


@contextmanager
def _beside(model: Path) -> Iterator[Path]:
    """Yield the path of a temporary file in the graph's folder, which paths of external data are relative to."""
    path = model.with_suffix(".optimised.onnx")
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
