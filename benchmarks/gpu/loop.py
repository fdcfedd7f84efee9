"""Parity and speed of the sampling loop on the device: the solver's kernel bit for bit, and TensorRT's steps.

Steps in the device loop are compared with steps in the host's loop.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.common.paths import ROOT
from qwen_image_engine.engines.core.loop import LoopingEngine, LoopInputs
from qwen_image_engine.engines.cuda.buffer import DeviceBuffer
from qwen_image_engine.engines.cuda.driver import device_info
from qwen_image_engine.engines.cuda.memory import CudaContext
from qwen_image_engine.engines.cuda.solver_kernel import NEVER, SolverKernel
from qwen_image_engine.engines.cuda.stream import CudaStream
from qwen_image_engine.runtime.sampling.solver import SOLVERS, guide, integrate

if TYPE_CHECKING:  # the kernel's own process needs no torch
    from benchmarks.gpu.timings import Row

KERNEL_SECONDS = 60.0
STEPS = 8
COUNT = 4096 * 64 + 3
"""Elements of the latents of 1024x1024, plus a block that is not full."""

SIGMAS = np.linspace(1, 0, STEPS + 1, dtype=np.float32)
GUIDANCE = 3.5
EULER = SOLVERS["euler"].stages(SIGMAS)


def kernel_row() -> Row:
    """Compare guided steps of UniPC, which uses all weights, with numpy's; the kernel must find values not finite.

    Raises:
        QwenImageError: there is no GPU, or it does not accept the kernel.
    """
    device_info()
    context = CudaContext.open()
    stream, kernel = CudaStream(context), SolverKernel(context)
    rng = np.random.default_rng(0)
    latents, toward, away = (rng.standard_normal(COUNT, np.float32) for _ in range(3))
    fault = np.array([NEVER], np.uint32)
    terms = np.zeros(COUNT, np.float32), np.zeros(COUNT, np.float32)
    arrays = latents, toward, away, fault, *terms
    buffers = [DeviceBuffer(context, array.nbytes) for array in arrays]
    for buffer, array in zip(buffers, arrays, strict=True):
        buffer.upload(stream, array)
    latents_at, toward_at, away_at, fault_at, *terms_at = (item.device.address for item in buffers)
    stages = SOLVERS["unipc"].stages(SIGMAS)

    def step(index: int) -> None:
        kernel.launch(
            stream.handle,
            stage=stages[index],
            latents=latents_at,
            toward=toward_at,
            away=away_at,
            before=terms_at[index % 2],
            earlier=terms_at[1 - index % 2],
            fault=fault_at,
            guidance=GUIDANCE,
            count=COUNT,
            index=index,
        )

    def read(index: int) -> Any:
        found = np.empty_like(arrays[index])
        buffers[index].download(stream, found.nbytes)
        stream.synchronise()
        buffers[index].read(found)
        return found

    for index in range(STEPS):
        step(index)
    slope = guide(toward, away, GUIDANCE)
    *_, last = integrate(lambda values, sigma: slope, latents, stages)
    equal, finite = np.array_equal(read(0), last.latents), int(read(3)[0]) == NEVER
    toward[-1] = np.nan
    buffers[1].upload(stream, toward)
    for index in (5, 2):
        step(index)
    return {"way": "solver kernel", "steps": STEPS, "equal": equal, "fault_found": finite and int(read(3)[0]) == 2}


def kernel_row_apart() -> Row:
    """Run `kernel_row` in a process of its own. A fault in the kernel would end the context of all other rows.

    Raises:
        RuntimeError: the process fails; the text gives its last line of standard error.
    """
    code = "import json; from benchmarks.gpu.loop import kernel_row; print(json.dumps(kernel_row()))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=KERNEL_SECONDS
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    return dict(json.loads(done.stdout))


def loop_row(engine: LoopingEngine, inputs: Mapping[str, Any]) -> Row:
    """Return the milliseconds of a step in the device loop (by its clock and the host's) and in the host's loop.

    Each loop runs twice, and the second time counts.

    Args:
        engine: engine of the step.
        inputs: inputs of one step, with keys and values on the device.
    """
    from benchmarks.gpu.work import p90

    latents, features = inputs["latents"], inputs["time_features"]
    fixed = {name: values for name, values in inputs.items() if name not in ("latents", "time_features")}
    asked = LoopInputs(latents, EULER, np.repeat(features, STEPS, axis=0), (fixed,), 1.0)
    found: Row = {"steps": STEPS}
    for _ in range(2):
        began = perf_counter()
        loop = engine.loop(asked)
        for _ in range(STEPS):
            loop.advance()
        result = loop.finish()
        found["device_loop_ms"] = 1000 * (perf_counter() - began) / STEPS
        found["device_run_ms"] = 1000 * median(result.seconds)
        found["device_run_p90_ms"] = 1000 * p90(result.seconds)
    for _ in range(2):
        began = perf_counter()
        *_, last = integrate(
            lambda values, sigma: engine.run({**inputs, "latents": values})["velocity"], latents, EULER
        )
        found["host_loop_ms"] = 1000 * (perf_counter() - began) / STEPS
    found["equal"] = bool(np.array_equal(result.latents, last.latents))
    found["finite"] = result.not_finite is None
    return found
