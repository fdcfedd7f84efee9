"""Sampling on the device, for engines that take the steps themselves. Latents are read back only on request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.core.loop import Loop, LoopInputs, Stage
from qwen_image_engine.runtime.component_pool import ComponentPool
from qwen_image_engine.runtime.conditioning import Conditioning
from qwen_image_engine.runtime.denoiser import step_inputs
from qwen_image_engine.runtime.model.facts import ModelFacts
from qwen_image_engine.runtime.model.time import time_features
from qwen_image_engine.runtime.sampling.inputs import SamplingInputs
from qwen_image_engine.runtime.sampling.solver import guide, not_finite, sigma_after
from qwen_image_engine.runtime.sampling.step import Read, Step
from qwen_image_engine.runtime.system.cancellation import check_cancelled


def takes_steps(pool: ComponentPool, facts: ModelFacts) -> bool:
    """Return whether the engine of the component "step" takes the steps itself. Load it if it is not held.

    Bidirectional networks have no component "step", so the host takes their steps.
    """
    return not facts.bidirectional and pool.loops("step")


def device_steps(
    pool: ComponentPool,
    facts: ModelFacts,
    conditionings: Sequence[Conditioning],
    guidance: float,
    inputs: SamplingInputs,
) -> Iterator[Step]:
    """Take all steps on the device, with the same bits as `solver.integrate`.

    The host waits for each stage, so that a run can be cancelled within one. It allocates nothing between two.

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
        stages=inputs.stages,
        time_features=np.stack([time_features(stage.sigma) for stage in inputs.stages]),
        branches=tuple(
            step_inputs(pool, facts, item, rows=inputs.rows, columns=inputs.columns, num_images=num_images)
            for item in conditionings
        ),
        guidance=guidance,
    )
    last = len(inputs.stages) - 1
    with pool.timings.measure_runs("step") as seconds:
        loop = pool.loop("step", loop_inputs)
        state = _State(loop, guidance)
        try:
            began = perf_counter()
            for index, stage in enumerate(inputs.stages):
                check_cancelled()
                pool.allocate("step", loop.advance)
                loop.wait()
                state.taken += 1
                if stage.ends and index < last:
                    took, sigma = perf_counter() - began, sigma_after(inputs.stages, index)
                    yield Step(stage.step, inputs.steps, sigma, took, state.reader(stage))
                    began = perf_counter()
            found = loop.finish()
        except BaseException:
            loop.abandon()
            raise
        seconds += found.seconds
    if found.not_finite is not None:
        raise not_finite(inputs.stages[found.not_finite], inputs.steps)
    final = found.latents, np.zeros_like(found.latents)  # at sigma 0 the velocity points nowhere else
    yield Step(inputs.steps - 1, inputs.steps, 0.0, perf_counter() - began, lambda: final)


class _State:
    """The latents on the device, which each stage overwrites."""

    def __init__(self, loop: Loop, guidance: float) -> None:
        self._loop = loop
        self._guidance = guidance
        self.taken = 0

    def reader(self, stage: Stage) -> Read:
        """Return the function that reads latents and velocity after a stage, until the next one overwrites them."""
        taken = self.taken

        def read() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            if self.taken != taken:
                raise QwenImageError(
                    f"step {stage.step + 1}: its latents have been overwritten by a later step; read them "
                    "before the next step is taken"
                )
            latents, toward, *away = self._loop.read()
            return latents, guide(toward, away[0], self._guidance) if away else toward

        return read
