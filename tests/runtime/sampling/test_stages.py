"""Solvers' stages against diffusers' schedulers, an exact solution, and the order of their errors."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from numpy.typing import NDArray

from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.runtime.sampling.solver import SOLVERS, find_solver, integrate

SHAPE = (2, 12, 5)
Field = Callable[[NDArray[np.float32], float], NDArray[np.float32]]


def field(latents: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    return np.tanh(latents * np.float32(1.5)) + np.float32(sigma)


def start() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32)


def last(solver: str, sigmas: NDArray[np.float32], velocity: Field = field) -> NDArray[np.float32]:
    return [*integrate(velocity, start(), SOLVERS[solver].stages(sigmas))][-1].latents


def grid(steps: int, first: float = 0.98) -> NDArray[np.float32]:
    """Uneven levels below 1, where diffusers' logarithms are finite."""
    even = np.linspace(first, first / steps, steps)
    shifted = 2.5 * even / (1 + 1.5 * even)
    return np.append(shifted, 0).astype(np.float32)


def diffusers(scheduler: Any, sigmas: NDArray[np.float32]) -> NDArray[np.float32]:
    """The latents after all steps of a multistep scheduler on our levels."""
    scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.sigmas = torch.from_numpy(sigmas.copy())
    scheduler.timesteps = torch.arange(len(sigmas) - 1, 0, -1)
    scheduler._step_index = scheduler._begin_index = 0
    latents = torch.from_numpy(start())
    for index, timestep in enumerate(scheduler.timesteps):
        velocity = torch.from_numpy(field(latents.numpy(), float(sigmas[index])))
        latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
    return np.asarray(latents.numpy())


FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "solver_order": 2, "final_sigmas_type": "zero"}


@pytest.mark.parametrize("steps", [2, 3, 8, 15, 30])
def test_dpm_solver_equals_diffusers(steps: int) -> None:
    scheduler = DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_type="midpoint", **FLOW)
    np.testing.assert_allclose(last("dpm++2m", grid(steps)), diffusers(scheduler, grid(steps)), rtol=0, atol=2e-5)


@pytest.mark.parametrize("steps", [2, 3, 8, 15, 30])
def test_unipc_equals_diffusers(steps: int) -> None:
    scheduler = UniPCMultistepScheduler(solver_type="bh2", **FLOW)
    np.testing.assert_allclose(last("unipc", grid(steps)), diffusers(scheduler, grid(steps)), rtol=0, atol=2e-5)


@pytest.mark.parametrize("steps", [2, 3, 8, 15])
def test_heun_equals_diffusers(steps: int) -> None:
    scheduler = FlowMatchHeunDiscreteScheduler()
    scheduler.set_timesteps(steps)
    levels = np.array([*dict.fromkeys(scheduler.sigmas.tolist())], np.float32)
    calls: list[float] = []

    def counted(latents: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
        calls.append(sigma)
        return field(latents, sigma)

    latents = torch.from_numpy(start())
    for timestep in scheduler.timesteps:
        index = 0 if scheduler.step_index is None else scheduler.step_index
        velocity = torch.from_numpy(field(latents.numpy(), float(scheduler.sigmas[index])))
        latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
    np.testing.assert_allclose(last("heun", levels, counted), latents.numpy(), rtol=0, atol=1e-4)
    assert len(calls) == len(scheduler.timesteps) == 2 * steps - 1


def test_the_coefficients_of_ab2_on_uneven_steps() -> None:
    """Steps of -0.2 and -0.4: the ratio is 2, so x' = x - 0.4 * (2 v - v1)."""
    first, second = SOLVERS["ab2"].stages(np.array([0.6, 0.4, 0.0], np.float32))
    assert (first.a, first.b, first.c) == (1, pytest.approx(-0.2), 0)
    assert (second.a, second.b, second.c, second.d) == (1, pytest.approx(-0.8), pytest.approx(0.4), 0)


@pytest.mark.parametrize("solver", ["ab2", "heun"])
def test_solvers_in_sigma_are_exact_where_the_velocity_is_linear_in_it(solver: str) -> None:
    """After the first step, of Euler's: v = sigma has the solution x + sigma^2 / 2."""
    levels = grid(9)
    found = [
        step.latents for step in integrate(lambda x, s: np.full_like(x, s), start(), SOLVERS[solver].stages(levels))
    ]
    begin, end = (0, -2) if solver == "heun" else (0, -1)  # the last step of Heun's is Euler's
    moved = found[end] - found[begin]
    stop = levels[end]
    np.testing.assert_allclose(moved, (stop**2 - levels[1] ** 2) / 2, rtol=0, atol=1e-6)


def gaussian(latents: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """The exact velocity where pictures are normal with mean 1 and variance 1/4.

    x = (1 - s) z + s n has variance w = (1 - s)^2 / 4 + s^2, and the velocity is E[n - z | x].
    """
    share = 1 - sigma
    spread = share**2 / 4 + sigma**2
    return np.asarray((latents - share) * ((sigma - share / 4) / spread) - 1)


def exact(latents: NDArray[np.float32], first: float) -> NDArray[np.float32]:
    """The flow keeps standard scores."""
    spread = math.sqrt((1 - first) ** 2 / 4 + first**2)
    return np.asarray((latents - (1 - first)) / spread / 2 + 1)


@pytest.mark.parametrize(("solver", "falls_by"), [("euler", 2), ("ab2", 4), ("dpm++2m", 4), ("unipc", 4), ("heun", 4)])
@pytest.mark.parametrize("first", [1.0, 0.95])
def test_the_error_falls_with_the_order(solver: str, falls_by: float, first: float) -> None:
    """On a problem with an exact solution, in float64, when the steps double."""

    def error(steps: int) -> float:
        levels = np.linspace(first, 0, steps + 1).astype(np.float32)
        wide = start().astype(np.float64)
        found = [*integrate(gaussian, wide, SOLVERS[solver].stages(levels))][-1].latents  # type: ignore[arg-type]
        return float(np.linalg.norm(found - exact(wide, first)))  # type: ignore[arg-type]

    ratios = [error(steps) / error(2 * steps) for steps in (20, 40)]
    assert ratios[-1] == pytest.approx(falls_by, rel=0.3)


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_is_consistent(solver: str) -> None:
    """A velocity that leads straight to a picture leads there, on any grid; and each step has its last stage."""
    picture = np.float32(0.25)
    for levels in (grid(6), np.array([1, 0.9, 0.3, 0], np.float32), np.array([0.7, 0.5, 0.0], np.float32)):
        stages = SOLVERS[solver].stages(levels)
        steps = [*integrate(lambda x, s: (x - picture) / np.float32(s), start(), stages)]
        np.testing.assert_allclose(steps[-1].latents, picture, rtol=0, atol=2e-6)
        assert [step.sigma for step in steps] == levels[1:].tolist()
        assert [stage.step for stage in stages if stage.ends] == list(range(len(levels) - 1))
        assert all(math.isfinite(value) for stage in stages for value in (stage.a, stage.b, stage.c, stage.d))


def test_an_unknown_solver_is_told_with_the_known_ones() -> None:
    with pytest.raises(
        UsageError, match=r"solver 'ddim' is unknown, expected one of euler, ab2, dpm\+\+2m, unipc, heun"
    ):
        find_solver("ddim")
