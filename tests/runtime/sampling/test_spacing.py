"""Spacings against diffusers' scheduler and mpmath's incomplete beta function."""

import mpmath
import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler

from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.runtime.cli.shared.arguments import spacing
from qwen_image_engine.runtime.sampling.schedule import sigmas
from qwen_image_engine.runtime.sampling.spacing import beta_quantile, levels_text
from tests.runtime.sampling.test_schedule import BASE, TURBO, TURBO_SIGMAS, read


@pytest.mark.parametrize("steps", [2, 5, 14, 40])
def test_karras_equals_diffusers(steps: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(BASE | {"use_karras_sigmas": True})
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=0.6)
    config = read(BASE | {"base_shift": 0.6, "max_shift": 0.6})
    np.testing.assert_allclose(sigmas(config, steps, 256, "karras"), scheduler.sigmas.numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 1e-9, 0.01, 0.2, 0.4999, 0.5, 0.7, 0.999, 1.0])
def test_the_quantile_is_that_of_the_beta_distribution(share: float) -> None:
    found = beta_quantile(share, 0.6)
    assert float(mpmath.betainc(0.6, 0.6, 0, found, regularized=True)) == pytest.approx(share, abs=1e-8)


@pytest.mark.parametrize("steps", [2, 3, 14])
def test_beta_places_quantiles_between_the_first_level_and_the_last(steps: int) -> None:
    own, found = (sigmas(read(BASE), steps, 1024, name) for name in (None, "beta"))
    assert (found[0], found[-2], found[-1]) == (own[0], own[-2], 0)
    shares = (found[:-1] - own[-2]) / (own[0] - own[-2])
    masses = [float(mpmath.betainc(0.6, 0.6, 0, float(share), regularized=True)) for share in shares]
    np.testing.assert_allclose(masses, np.linspace(1, 0, steps), rtol=0, atol=2e-4)


def test_linear_is_even_and_model_is_the_schedules_own() -> None:
    own = sigmas(read(BASE), 9, 1024)
    np.testing.assert_allclose(np.diff(sigmas(read(BASE), 9, 1024, "linear")[:-1]), -(own[0] - own[-2]) / 8, rtol=1e-5)
    np.testing.assert_array_equal(sigmas(read(BASE), 9, 1024, "model"), own)


def test_a_list_is_shifted_and_stretched_as_diffusers_does() -> None:
    given = [1.0, 0.7, 0.45, 0.2]
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(BASE)
    scheduler.set_timesteps(sigmas=given, mu=0.5)  # that of 256 tokens
    np.testing.assert_allclose(sigmas(read(BASE), None, 256, given), scheduler.sigmas.numpy(), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(
        sigmas(read(TURBO), 4, 256, given), sigmas(read(TURBO, TURBO_SIGMAS), None, 256, given)
    )


@pytest.mark.parametrize("steps", [1, 4, 5, 16, 40])
def test_a_fixed_grid_is_interpolated(steps: int) -> None:
    config = read(TURBO | {"shift": 1.0}, TURBO_SIGMAS)
    found = sigmas(config, steps, 256)
    assert len(found) == steps + 1
    line = np.interp(np.linspace(0, 8, steps + 1), np.arange(9), [*TURBO_SIGMAS, 0.0])
    np.testing.assert_allclose(found, line, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([0.5, 0.7], "expected numbers that fall"),
        ([1.0, 0.5, 0.5], "expected numbers that fall"),
        ([1.1, 0.5], "from at most 1"),
        ([1.0, 0.0], "above 0"),
        ([1.0, -0.5], "above 0"),
        ([1.0, float("nan")], "expected numbers that fall"),
        ([], "expected a list of numbers, or one of model, linear, karras, beta"),
        ([1.0, "0.5"], "expected a list of numbers"),
        ([True, 0.5], "expected a list of numbers"),
        (0.5, "expected a list of numbers"),
        ("cosine", "sigmas 'cosine': expected numbers, or one of model, linear, karras, beta"),
        ([1.0, 1.0 - 1e-9], "two noise levels are equal in float32"),
        (np.linspace(1, 0.001, 1001), "1001 steps asked for, at most 1000"),
    ],
)
def test_bad_sigmas_are_told(given: object, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        sigmas(read(TURBO), None, 256, given)  # type: ignore[arg-type]


def test_levels_that_the_stretch_cannot_take_are_told() -> None:
    with pytest.raises(UsageError, match="1 sigma given, expected at least 2: this schedule stretches them"):
        sigmas(read(BASE), None, 256, [0.5])
    with pytest.raises(UsageError, match="every sigma is 1 in float32"):
        sigmas(read(BASE), None, 256, [1.0, 1.0 - 1e-10])


@pytest.mark.parametrize(
    ("levels", "text"), [("karras", "karras"), ((1.0, 0.6), "1,0.6"), ((0.1 + 0.2, 1 / 7), f"{0.1 + 0.2!r},{1 / 7!r}")]
)
def test_levels_are_written_as_the_flag_reads_them_back(levels: tuple[float, ...] | str, text: str) -> None:
    assert levels_text(levels) == text
    assert spacing(text) == levels


def test_another_number_of_steps_than_sigmas_is_refused() -> None:
    with pytest.raises(UsageError, match="5 steps asked for, and 2 sigmas; leave out the number of steps"):
        sigmas(read(BASE), 5, 256, [1.0, 0.5])
