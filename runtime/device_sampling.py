"""The sampler's steps where the network runs, on engines that take them: the latents come to the host once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from qwen_image_engine.engines.core.loop import LoopInputs
from qwen_image_engine.runtime.components import Components
from qwen_image_engine.runtime.conditioning import Conditioning
from qwen_image_engine.runtime.denoiser import step_inputs
from qwen_image_engine.runtime.model.facts import ModelFacts
from qwen_image_engine.runtime.model.time import time_features
from qwen_image_engine.runtime.sampling.euler import not_finite
from qwen_image_engine.runtime.sampling.inputs import Start
from qwen_image_engine.runtime.system.interruption import check_interrupted


def final_latents(
    components: Components,
    facts: ModelFacts,
    conditionings: Sequence[Conditioning],
    guidance: float,
    start: Start,
    advance: Callable[[], None] | None,
) -> NDArray[np.float32] | None:
    """Take all steps of a picture as `sampler.euler` does, or none where the engine does not take them itself.

    Args:
        components: whose "step" is run; bidirectional networks have none and are drawn on the host.
        facts: of the model.
        conditionings: of the prompt, and with guidance of the negative prompt.
        guidance: of the first over the second, checked.
        start: latents and noise levels.
        advance: called once a step, when it is done; without it nothing is waited for until the end.

    Returns:
        The latents (batch, tokens, channels) after the last step, or None.

    Raises:
        QwenImageError: an engine failed, there is no memory, or a velocity is not finite.
    """
    if facts.bidirectional or not components.loops("step"):
        return None
    num_images = len(start.latents)
    inputs = LoopInputs(
        latents=start.latents,
        sigmas=start.sigmas,
        time_features=np.stack([time_features(float(sigma)) for sigma in start.sigmas[:-1]]),
        branches=tuple(
            step_inputs(components, facts, item, rows=start.rows, columns=start.columns, num_images=num_images)
            for item in conditionings
        ),
        guidance=guidance,
    )
    with components.timings.measure_runs("step") as seconds:
        loop = components.loop("step", inputs)
        try:
            for index in range(start.steps):
                check_interrupted()
                components.allocate("step", loop.step)
                if advance is not None and index > 0:
                    loop.pace()
                    advance()
            found = loop.finish()
        except BaseException:
            loop.abandon()
            raise
        seconds += found.seconds
        if advance is not None:
            advance()
    if found.not_finite is not None:
        raise not_finite(found.not_finite, start.sigmas)
    return found.latents
