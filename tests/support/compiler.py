"""The real compiler in tests: TensorRT for RTX, which compiles without a GPU."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import replace

import pytest

from qwen_image_engine.engines.tensorrt.build.job import BuildJob, BuildResult
from qwen_image_engine.engines.tensorrt.build.launch import Watch
from tests.support.plans import kept_plans

CAPABILITIES = {"bf16": "8.6", "int8": "8.6", "fp8": "8.9"}
"""The oldest compute capability that takes each precision, among consumer cards of three generations."""


def need_compiler() -> None:
    """Skip the test where the compiler is not installed; fail there in CI, where it must be."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        lacks = "tensorrt_rtx is not installed (make setup, or pip install 'qwen-image-engine[tensorrt-rtx]')"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(lacks)


def compiled_for(capability: str) -> Callable[[BuildJob, Watch], BuildResult]:
    """Return a build of any job with the real compiler instead of its builder, for one compute capability."""

    def run(job: BuildJob, watch: Watch) -> BuildResult:
        own = {"builder": "tensorrt-rtx", "compute_capabilities": (capability,), "timing_cache": None}
        return kept_plans()(replace(job, **own), watch)

    return run
