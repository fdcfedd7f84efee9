"""Proof that quantised linears run as products of integers: the graph as ONNX Runtime has optimised it, counted.

A pattern that ONNX Runtime does not fuse is no error there: it runs in fp32 on dequantised weights, 6 times slower.
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
    """Check that each of `weights` in the graph `model` is read by a kernel for integers.

    The whole graph is optimised as the engine does it, but for `session.x64quantprecision`, which renames weights, and
    constant folding, which reads some (the prefix's modulation does not depend on its inputs). Not prepacked, they stay
    in their mapped file unread, so this holds no more than the graph itself.

    Raises:
        QwenImageError: some are not, or ONNX Runtime is not installed or cannot load the graph.
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
    """A file that does not stay, in the folder that the graph's references to its weights are relative to."""
    path = model.with_suffix(".optimised.onnx")
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
