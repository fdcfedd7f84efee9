"""Solvers of the sampling equation dx/dsigma = velocity: the table of their names, and the integration on the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.engines.core.loop import Stage
from qwen_image_engine.runtime.sampling import stages
from qwen_image_engine.runtime.sampling.inpainting import Inpainting
from qwen_image_engine.runtime.sampling.step import Step

Latents = NDArray[np.float32]

Velocity = Callable[[Latents, float], Latents]
"""The network as a function: (latents (batch, tokens, channels), sigma) -> velocity of the same shape."""


@dataclass(frozen=True)
class SolverRow:
    """A row of the table of solvers.

    Attributes:
        name: key of the row.
        label: name that other programs show for it, for the text chunk that they read.
        stages: function that returns the stages on a grid of noise levels (N + 1,) float32, falling to 0.
        fewest_steps: least number of steps. With fewer the solver would be Euler's.
    """

    name: str
    label: str
    stages: Callable[[NDArray[np.float32]], tuple[Stage, ...]]
    fewest_steps: int


SOLVERS: Mapping[str, SolverRow] = {
    row.name: row
    for row in (
        SolverRow("euler", "Euler", stages.euler, 1),
        SolverRow("ab2", "AB2", stages.ab2, 2),
        SolverRow("dpm++2m", "DPM++ 2M", stages.dpm_2m, 2),
        SolverRow("unipc", "UniPC", stages.unipc, 2),
        SolverRow("heun", "Heun", stages.heun, 2),
    )
}
"""Solvers by name."""


def find_solver(name: str) -> SolverRow:
    """Return the row of a solver.

    Raises:
        UsageError: no solver has this name.
    """
    row = SOLVERS.get(name) if isinstance(name, str) else None
    if row is None:
        raise UsageError(f"solver {name!r} is unknown, expected one of {', '.join(SOLVERS)}")
    return row


class State:
    """The latents of an integration, with the terms of the two stages before."""

    def __init__(self, latents: Latents) -> None:
        """Begin with latents (batch, tokens, channels), which are not modified."""
        self.latents = latents
        self._before: Latents | None = None
        self._earlier: Latents | None = None

    def apply(self, stage: Stage, velocity: Latents) -> None:
        """Compute the term of a stage and the latents after it, in float32. `Stage` has the formula.

        `engines/cuda/solver_kernel.py` computes the same on a GPU, bit for bit.
        """
        term = _combined(((stage.p, self.latents), (stage.q, velocity)))
        self.latents = _combined(
            ((stage.a, self.latents), (stage.b, term), (stage.c, self._before), (stage.d, self._earlier))
        )
        self._before, self._earlier = term, self._before


def _combined(parts: Sequence[tuple[float, Latents | None]]) -> Latents:
    """Return the sum of weighted arrays. What adds nothing is left out; it would change no bit but a zero's sign."""
    total: Latents | None = None
    for weight, values in parts:
        if weight == 0 or values is None:
            continue
        part = values if weight == 1 else np.float32(weight) * values
        total = part if total is None else total + part
    assert total is not None, "a stage without a weight"
    return total


def integrate(
    velocity: Velocity, latents: Latents, plan: Sequence[Stage], inpainting: Inpainting | None = None
) -> Iterator[Step]:
    """Integrate dx/dsigma = velocity on the host.

    With a mask, the latents outside of it are set before the first step and after each one, so every step begins with
    blended latents, and the terms that a solver keeps are theirs. Within a step nothing is set: the second stage of
    Heun's method evaluates the network at the first one's own prediction. Stages weigh latent by latent, so latents
    outside reach those inside through the network alone.

    Args:
        velocity: the network.
        latents: latents (batch, tokens, channels) at the first stage's sigma; not modified.
        plan: stages of all steps, as `SolverRow.stages` returns them.
        inpainting: latents outside of a mask; None without a mask.

    Yields:
        A step after its last stage, with the latents at the sigma after it.

    Raises:
        QwenImageError: the velocity is not finite or does not have the shape of the latents.
    """
    steps = plan[-1].step + 1
    state = State(latents if inpainting is None else inpainting.blended(latents, plan[0].sigma))
    began = perf_counter()
    for index, stage in enumerate(plan):
        slope = velocity(state.latents, stage.sigma)
        if slope.shape != latents.shape:
            raise QwenImageError(f"velocity has shape {slope.shape}, expected that of the latents, {latents.shape}")
        if not np.isfinite(slope).all():
            raise not_finite(stage, steps)
        state.apply(stage, slope)
        if stage.ends:
            sigma = sigma_after(plan, index)
            if inpainting is not None:
                state.latents = inpainting.blended(state.latents, sigma)
            seconds = perf_counter() - began
            yield Step(stage.step, steps, sigma, seconds, partial(_pair, state.latents, slope, inpainting))
            began = perf_counter()


def sigma_after(plan: Sequence[Stage], index: int) -> float:
    """Return the noise level after the stage `index`, which ends a step; 0 after the last."""
    return plan[index + 1].sigma if index + 1 < len(plan) else 0.0


def _pair(latents: Latents, slope: Latents, inpainting: Inpainting | None) -> tuple[Latents, Latents]:
    return latents, slope if inpainting is None else inpainting.velocity(slope)


def not_finite(stage: Stage, steps: int) -> QwenImageError:
    """Return the error for a stage, of so many steps in all, whose velocity is not finite."""
    return QwenImageError(
        f"step {stage.step + 1} of {steps} (sigma {stage.sigma:.4f}): the velocity is not finite; "
        "run the transformer in bf16 or fp32"
    )


def guide(positive: Latents, negative: Latents, guidance: float) -> Latents:
    """Combine the velocities of prompt and negative prompt: negative + guidance * (positive - negative)."""
    return negative + np.float32(guidance) * (positive - negative)
