"""Solvers of the sampling equation dx/dsigma = velocity, and the table of solvers by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.runtime.sampling.step import Step

Latents = NDArray[np.float32]

Velocity = Callable[[Latents, float], Latents]
"""The network as a function: (latents (batch, tokens, channels), sigma) -> velocity of the same shape."""


class Solver(Protocol):
    """An integration of dx/dsigma = velocity over a falling grid of noise levels, with the state of the method."""

    def step(self, velocity: Velocity, latents: Latents, index: int) -> tuple[Latents, Latents]:
        """Take step `index`, from sigmas[index] to sigmas[index + 1]. Steps are taken in order, each once.

        Args:
            velocity: the network.
            latents: latents (batch, tokens, channels) at sigmas[index]; not modified.
            index: index of the step, 0 for the first.

        Returns:
            The latents after the step, and the velocity at the beginning of the step.
        """
        ...


@dataclass(frozen=True)
class SolverRow:
    """A row of the table of solvers.

    Attributes:
        name: key of the row. Requests cannot choose a solver yet.
        begin: function that creates the solver of one integration over sigmas (N + 1,) float32.
        on_device: whether engines that take the steps themselves (`engines.core.loop`) do this arithmetic. Their
            kernel is Euler's.
    """

    name: str
    begin: Callable[[NDArray[np.float32]], Solver]
    on_device: bool


class Euler:
    """Euler's method, x + (sigma' - sigma) * velocity, as in diffusers' `FlowMatchEulerDiscreteScheduler`."""

    def __init__(self, sigmas: NDArray[np.float32]) -> None:
        self._sigmas = sigmas

    def step(self, velocity: Velocity, latents: Latents, index: int) -> tuple[Latents, Latents]:
        """Take one Euler step from sigmas[index] to sigmas[index + 1]. `Solver.step` describes the arguments."""
        sigma, following = self._sigmas[index], self._sigmas[index + 1]
        slope = velocity(latents, float(sigma))
        return euler_step(latents, slope, sigma, following), slope


def euler_step(latents: Latents, velocity: Latents, sigma: np.float32, following: np.float32) -> Latents:
    """Return the latents at the noise level `following` after one Euler step from `sigma`, in float32.

    `engines/cuda/euler_kernel.py` computes the same on a GPU, bit for bit.
    """
    return latents + (following - sigma) * velocity


SOLVERS: Mapping[str, SolverRow] = {row.name: row for row in (SolverRow("euler", Euler, on_device=True),)}
"""Solvers by name."""


def integrate(
    velocity: Velocity, latents: Latents, sigmas: NDArray[np.float32], solver: SolverRow = SOLVERS["euler"]
) -> Iterator[Step]:
    """Integrate dx/dsigma = velocity from sigmas[0] to sigmas[-1] on the host.

    Args:
        velocity: the network.
        latents: latents (batch, tokens, channels) at sigmas[0]; not modified.
        sigmas: noise levels (N + 1,) float32, falling.
        solver: row of `SOLVERS`.

    Yields:
        N steps. Step k comes after its update, with the latents at sigmas[k+1].

    Raises:
        QwenImageError: the velocity is not finite or does not have the shape of the latents.
    """
    steps = len(sigmas) - 1
    method = solver.begin(sigmas)
    for index in range(steps):
        began = perf_counter()
        latents, slope = method.step(_checked(velocity, index, sigmas), latents, index)
        seconds = perf_counter() - began
        yield Step(index, steps, float(sigmas[index + 1]), seconds, partial(_pair, latents, slope))


def _pair(latents: Latents, slope: Latents) -> tuple[Latents, Latents]:
    return latents, slope


def _checked(velocity: Velocity, index: int, sigmas: NDArray[np.float32]) -> Velocity:
    def evaluate(latents: Latents, sigma: float) -> Latents:
        slope = velocity(latents, sigma)
        if slope.shape != latents.shape:
            raise QwenImageError(f"velocity has shape {slope.shape}, expected that of the latents, {latents.shape}")
        if not np.isfinite(slope).all():
            raise not_finite(index, sigmas)
        return slope

    return evaluate


def not_finite(index: int, sigmas: NDArray[np.float32]) -> QwenImageError:
    """Return the error for step `index` of a grid (N + 1,) whose velocity is not finite."""
    return QwenImageError(
        f"step {index + 1} of {len(sigmas) - 1} (sigma {sigmas[index]:.4f}): the velocity is not finite; "
        "run the transformer in bf16 or fp32"
    )


def guide(positive: Latents, negative: Latents, guidance: float) -> Latents:
    """Combine the velocities of prompt and negative prompt: negative + guidance * (positive - negative)."""
    return negative + np.float32(guidance) * (positive - negative)
