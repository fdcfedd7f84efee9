"""Sampling on the device, for engines that take the steps themselves. Latents are read back only on request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.core.loop import Loop, LoopInputs
from qwen_image_engine.runtime.component_pool import ComponentPool
from qwen_image_engine.runtime.conditioning import Conditioning
from qwen_image_engine.runtime.denoiser import step_inputs
from qwen_image_engine.runtime.model.facts import ModelFacts
from qwen_image_engine.runtime.model.time import time_features
from qwen_image_engine.runtime.sampling.inputs import SamplingInputs
from qwen_image_engine.runtime.sampling.solver import SolverRow, guide, not_finite
from qwen_image_engine.runtime.sampling.step import Read, Step
from qwen_image_engine.runtime.system.cancellation import check_cancelled


def takes_steps(pool: ComponentPool, facts: ModelFacts, solver: SolverRow) -> bool:
    """Return whether the engine of the component "step" takes a solver's steps itself. Load it if it is not held.

    Bidirectional networks have no component "step", so the host takes their steps.
    """
    return solver.on_device and not facts.bidirectional and pool.loops("step")


def device_steps(
    pool: ComponentPool,
    facts: ModelFacts,
    conditionings: Sequence[Conditioning],
    guidance: float,
    inputs: SamplingInputs,
) -> Iterator[Step]:
    """Take all steps on the device, with the same bits as `solver.integrate`.

    The host waits for each step, so that a run can be cancelled within one step. It allocates nothing between steps.

    Args:
        pool: pool with the engine of the component "step", which takes steps itself.
        facts: facts of the model.
        conditionings: conditioning of the prompt, and with guidance also of the negative prompt.
        guidance: weight of the first conditioning over the second, checked.
        inputs: latents and noise levels.

    Raises:
        QwenImageError: an engine failed, there is no memory, or a velocity is not finite.
    """
    num_images = len(inputs.latents)
    loop_inputs = LoopInputs(
        latents=inputs.latents,
        sigmas=inputs.sigmas,
        time_features=np.stack([time_features(float(sigma)) for sigma in inputs.sigmas[:-1]]),
        branches=tuple(
            step_inputs(pool, facts, item, rows=inputs.rows, columns=inputs.columns, num_images=num_images)
            for item in conditionings
        ),
        guidance=guidance,
    )
    last = inputs.steps - 1
    with pool.timings.measure_runs("step") as seconds:
        loop = pool.loop("step", loop_inputs)
        state = _State(loop, guidance)
        try:
            for index in range(inputs.steps):
                began = perf_counter()
                check_cancelled()
                pool.allocate("step", loop.step)
                loop.wait()
                state.taken += 1
                if index < last:
                    took = perf_counter() - began
                    yield Step(index, inputs.steps, float(inputs.sigmas[index + 1]), took, state.reader(index))
            found = loop.finish()
        except BaseException:
            loop.abandon()
            raise
        seconds += found.seconds
    if found.not_finite is not None:
        raise not_finite(found.not_finite, inputs.sigmas)
    final = found.latents, np.zeros_like(found.latents)  # at sigma 0 the velocity points nowhere else
    yield Step(last, inputs.steps, float(inputs.sigmas[-1]), perf_counter() - began, lambda: final)


class _State:
    """The latents on the device, which each step overwrites."""

    def __init__(self, loop: Loop, guidance: float) -> None:
        self._loop = loop
        self._guidance = guidance
        self.taken = 0

    def reader(self, index: int) -> Read:
        """Return the function that reads latents and velocity of step `index`, until the next step overwrites them."""

        def read() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            if self.taken != index + 1:
                raise QwenImageError(
                    f"step {index + 1}: its latents have been overwritten on the device by step {self.taken}; read "
                    "them before the next step is taken"
                )
            latents, toward, *away = self._loop.read()
            return latents, guide(toward, away[0], self._guidance) if away else toward

        return read
