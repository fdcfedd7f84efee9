"""Sampling inside a mask against the loop of diffusers' inpainting pipelines."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from numpy.typing import NDArray

from qwen_image_engine.runtime.sampling.inpainting import Inpainting
from qwen_image_engine.runtime.sampling.solver import SOLVERS, integrate

SHAPE = (2, 12, 5)
RANDOM = np.random.default_rng(0)
NOISE = RANDOM.standard_normal(SHAPE, np.float32)
BASE = RANDOM.standard_normal((1, *SHAPE[1:]), np.float32)
OPEN = np.arange(12) % 3 == 0
INSIDE = Inpainting(OPEN, BASE, NOISE)


def field(latents: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Every latent sees every other one."""
    return np.tanh(latents * np.float32(1.5) + latents.mean(1, keepdims=True)) + np.float32(sigma)


def schedule(steps: int) -> Any:
    scheduler: Any = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=0.7)
    return scheduler


@pytest.mark.parametrize("steps", [2, 7, 40])
def test_steps_equal_diffusers(steps: int) -> None:
    """The loop is the denoising loop of `QwenImageInpaintPipeline.__call__`."""
    scheduler = schedule(steps)
    scheduler.set_begin_index(0)
    mask, base, noise = (torch.from_numpy(array) for array in (OPEN[:, None].astype(np.float32), BASE, NOISE))
    latents = noise
    taken = integrate(field, NOISE, SOLVERS["euler"].stages(scheduler.sigmas.numpy()), INSIDE)
    for index, (step, timestep) in enumerate(zip(taken, scheduler.timesteps, strict=True)):
        velocity = torch.from_numpy(field(latents.numpy(), float(scheduler.sigmas[index])))
        latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
        known = base.expand(SHAPE)
        if index < steps - 1:
            known = scheduler.scale_noise(base, torch.tensor([scheduler.timesteps[index + 1]]), noise)
        latents = (1 - mask) * known + mask * latents
        assert np.array_equal(step.latents[:, ~OPEN], known.numpy()[:, ~OPEN])
        # the order of two float32 operations may differ: an ulp a step
        np.testing.assert_allclose(step.latents, latents.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_step_of_every_solver_begins_with_blended_latents(solver: str) -> None:
    sigmas = schedule(6).sigmas.numpy()
    stages = SOLVERS[solver].stages(sigmas)
    seen: list[NDArray[np.float32]] = []

    def velocity(latents: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
        seen.append(latents)
        return field(latents, sigma)

    steps = list(integrate(velocity, NOISE, stages, INSIDE))
    first_stages = [index for index, stage in enumerate(stages) if not index or stages[index - 1].ends]
    for index, sigma in zip(first_stages, sigmas, strict=False):
        known = np.float32(sigma) * NOISE + (np.float32(1) - np.float32(sigma)) * BASE
        assert np.array_equal(seen[index][:, ~OPEN], known[:, ~OPEN])
    for step in steps:
        np.testing.assert_allclose(step.predicted[:, ~OPEN], np.broadcast_to(BASE, SHAPE)[:, ~OPEN], atol=1e-6)
    assert np.array_equal(steps[-1].latents[:, ~OPEN], np.broadcast_to(BASE, SHAPE)[:, ~OPEN])


@pytest.mark.parametrize("solver", SOLVERS)
def test_latents_that_do_not_see_one_another_take_their_own_way(solver: str) -> None:
    """Multistep terms outside do not leak: inside, a field without attention gives what it gives without a mask."""
    stages = SOLVERS[solver].stages(schedule(6).sigmas.numpy())

    def alone(latents: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
        return np.tanh(latents) + np.float32(sigma)

    whole, inside = (list(integrate(alone, NOISE, stages, mask))[-1].latents for mask in (None, INSIDE))
    assert np.array_equal(whole[:, OPEN], inside[:, OPEN])
    opened = Inpainting(np.ones(12, bool), BASE, NOISE)
    for step, same in zip(integrate(alone, NOISE, stages), integrate(alone, NOISE, stages, opened), strict=True):
        assert np.array_equal(step.latents, same.latents)
        assert np.array_equal(step.predicted, same.predicted)


def test_a_grid_that_begins_below_one_begins_with_blended_latents() -> None:
    seen: list[NDArray[np.float32]] = []

    def velocity(latents: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
        seen.append(latents)
        return field(latents, sigma)

    list(integrate(velocity, NOISE, SOLVERS["euler"].stages(np.array([0.75, 0.5, 0], np.float32)), INSIDE))
    assert np.array_equal(seen[0][:, ~OPEN], (0.75 * NOISE + 0.25 * BASE)[:, ~OPEN])
    assert np.array_equal(seen[0][:, OPEN], NOISE[:, OPEN])
