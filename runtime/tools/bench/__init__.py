"""`qwen-image bench`: contenders, rounds, results, statistics."""

from typing import TYPE_CHECKING

from qwen_image_engine.engines.core.entries import lazy_names

if TYPE_CHECKING:
    from qwen_image_engine.runtime.tools.bench.measure import bench as bench
    from qwen_image_engine.runtime.tools.bench.result import Benchmark as Benchmark

__all__ = ["Benchmark", "bench"]

__getattr__ = lazy_names(__name__, {"Benchmark": "runtime.tools.bench.result", "bench": "runtime.tools.bench.measure"})
