"""The solvers' kernel: its PTX run on numpy against the sampler's arithmetic, and assembled where there is ptxas."""

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qwen_image_engine.engines.core.loop import Stage
from qwen_image_engine.engines.cuda.buffer import DeviceBuffer
from qwen_image_engine.engines.cuda.memory import CudaContext
from qwen_image_engine.engines.cuda.solver_kernel import NEVER, PTX, SolverKernel
from qwen_image_engine.engines.cuda.stream import CudaStream
from qwen_image_engine.runtime.sampling.solver import SOLVERS, guide, integrate
from tests.support.fake_cuda import FakeDriver

PTXAS = shutil.which("ptxas")


class Played:
    """Arrays on a played device, and the kernel there."""

    def __init__(self, *arrays: NDArray[Any]) -> None:
        self.driver: Any = FakeDriver()
        self.context = CudaContext(self.driver, ctypes.c_void_p(1))
        self.stream = CudaStream(self.context)
        self.kernel = SolverKernel(self.context)
        self.arrays = arrays
        self.buffers = [DeviceBuffer(self.context, array.nbytes) for array in arrays]
        for buffer, array in zip(self.buffers, arrays, strict=True):
            buffer.upload(self.stream, array)

    def advance(self, guidance: float, stage: Stage, index: int) -> None:
        latents, toward, away, fault, *terms = (buffer.device.address for buffer in self.buffers)
        places = {"latents": latents, "toward": toward, "away": away, "fault": fault}
        places |= {"before": terms[index % 2], "earlier": terms[1 - index % 2]}
        count = self.arrays[0].size
        self.kernel.launch(self.stream.handle, stage=stage, **places, guidance=guidance, count=count, index=index)

    def read(self) -> list[NDArray[Any]]:
        for buffer, array in zip(self.buffers, self.arrays, strict=True):
            buffer.download(self.stream, array.nbytes)
        self.stream.synchronise()
        for buffer, array in zip(self.buffers, self.arrays, strict=True):
            buffer.read(array)
        return list(self.arrays)


def played(count: int, seed: int = 0) -> Played:
    rng = np.random.default_rng(seed)
    latents, toward, away = (rng.standard_normal(count, np.float32) for _ in range(3))
    terms = np.zeros(count, np.float32), np.zeros(count, np.float32)
    return Played(latents, toward, away, np.array([NEVER], np.uint32), *terms)


@pytest.mark.parametrize("count", [1, 255, 256, 257, 3000])
@pytest.mark.parametrize("guidance", [1.0, 3.5])
@pytest.mark.parametrize("solver", SOLVERS)
def test_stages_are_the_samplers_bit_for_bit(solver: str, count: int, guidance: float) -> None:
    device = played(count)
    latents, toward, away, *_ = (array.copy() for array in device.arrays)
    stages = SOLVERS[solver].stages(np.array([1.0, 0.9, 0.7, 0.55, 0.2, 0.0], np.float32))
    slope = guide(toward, away, guidance)
    wanted = [step.latents for step in integrate(lambda values, sigma: slope, latents, stages)][-1]
    for index, stage in enumerate(stages):
        device.advance(guidance, stage, index)
    found, *velocities, fault, _, _ = device.read()
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(velocities, [toward, away])
    assert fault[0] == NEVER


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_first_stage_that_was_not_finite_is_kept(value: float) -> None:
    device = played(300)
    device.stream.synchronise()
    device.arrays[1][270] = value
    device.buffers[1].upload(device.stream, device.arrays[1])
    for index in (7, 4, 9):
        device.advance(2.0, Stage(index, 0.5, p=0, q=1, a=1, b=-0.1), index)
    assert device.read()[3][0] == 4


@pytest.mark.process
@pytest.mark.skipif(PTXAS is None, reason="ptxas is not installed")
@pytest.mark.parametrize("capability", [75, 80, 86, 89, 90, 100, 120])
def test_it_assembles_for_every_gpu_that_tensorrt_11_serves(tmp_path: Path, capability: int) -> None:
    source = tmp_path / "stage.ptx"
    source.write_text(PTX, encoding="ascii")
    command = [str(PTXAS), f"-arch=sm_{capability}", "--warning-as-error", str(source), "-o", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
