import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from numpy.typing import NDArray

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.runtime.sampling.solver import SOLVERS, guide, integrate

SHAPE = (2, 12, 5)
EULER = SOLVERS["euler"].stages


def field(latents: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    return np.tanh(latents * np.float32(1.5)) + np.float32(sigma)


@pytest.mark.parametrize("steps", [2, 7, 40])
def test_steps_equal_diffusers(steps: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=0.7)
    start = np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32)
    untouched = start.copy()
    expected = torch.from_numpy(start.copy())

    taken = list(integrate(field, start, EULER(scheduler.sigmas.numpy())))

    assert [step.index for step in taken] == list(range(steps))
    for step, timestep, sigma in zip(taken, scheduler.timesteps, scheduler.sigmas, strict=False):
        velocity = torch.from_numpy(field(expected.numpy(), float(sigma)))
        expected = scheduler.step(velocity, timestep, expected, return_dict=False)[0]
        assert step.latents.dtype == np.float32
        assert step.sigma == float(scheduler.sigmas[step.index + 1])
        # the order of two float32 operations may differ: an ulp a step
        np.testing.assert_allclose(step.latents, expected.numpy(), rtol=0, atol=1e-6)
    assert taken[-1].sigma == 0
    np.testing.assert_array_equal(start, untouched)


def test_the_caller_owns_the_loop() -> None:
    calls = []

    def velocity(latents: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
        calls.append(sigma)
        return latents

    steps = integrate(velocity, np.ones(SHAPE, np.float32), EULER(np.array([1, 0.5, 0.25, 0], np.float32)))
    assert calls == []
    next(steps)
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert calls == [1.0, 0.5]


def test_velocity_that_is_not_finite_names_the_step() -> None:
    def velocity(latents: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
        return latents if sigma > 0.6 else latents * np.float32(np.nan)

    with pytest.raises(QwenImageError, match=r"step 2 of 3 \(sigma 0.5000\): the velocity is not finite"):
        list(integrate(velocity, np.ones(SHAPE, np.float32), EULER(np.array([1, 0.5, 0.25, 0], np.float32))))


def test_velocity_of_another_shape_is_refused() -> None:
    with pytest.raises(QwenImageError, match=r"\(2, 1, 5\), expected .* \(2, 12, 5\)"):
        next(integrate(lambda latents, _: latents[:, :1], np.ones(SHAPE, np.float32), EULER(np.ones(2, np.float32))))


@pytest.mark.parametrize("guidance", [1.0, 3.0, 4.5])
def test_guidance_equals_torch(guidance: float) -> None:
    positive, negative = np.random.default_rng(0).standard_normal((2, *SHAPE), dtype=np.float32)
    pos, neg = torch.from_numpy(positive), torch.from_numpy(negative)
    actual = guide(positive, negative, guidance)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, (neg + guidance * (pos - neg)).numpy(), rtol=1e-6, atol=1e-6)
