from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21TemporalTimesteps
from diffusers.pipelines.qwenimage.pipeline_qwenimage import calculate_shift
from numpy.typing import NDArray

from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.runtime.model.time import time_features
from qwen_image_engine.runtime.sampling.schedule import ScheduleConfig, sigmas
from tests.support.json_values import changed

BASE = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "_diffusers_version": "0.42.1",
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "invert_sigmas": False,
    "max_image_seq_len": 8192,
    "max_shift": 0.9,
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "shift_terminal": 0.02,
    "stochastic_sampling": False,
    "time_shift_type": "exponential",
    "use_beta_sigmas": False,
    "use_dynamic_shifting": True,
    "use_exponential_sigmas": False,
    "use_karras_sigmas": False,
}
TURBO = BASE | {"use_dynamic_shifting": False, "shift_terminal": None}
TURBO_SIGMAS = [1.0, 0.978453, 0.95418, 0.926626, 0.89508, 0.845148, 0.704534, 0.414568]


FIGURE = "sigmas against diffusers, largest difference"

Within = Callable[[str, float, float], None]


def difference(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max())


def read(scheduler: dict[str, Any], sample_sigmas: object = None) -> ScheduleConfig:
    return ScheduleConfig.from_json(scheduler, sample_sigmas, "scheduler_config.json")


def diffusers_sigmas(
    scheduler: dict[str, Any], sample_sigmas: list[float] | None, steps: int, tokens: int
) -> NDArray[np.float32]:
    """Step 4 of QwenImage21Pipeline.__call__."""
    oracle = FlowMatchEulerDiscreteScheduler.from_config(scheduler)
    grid = np.linspace(1.0, 1 / steps, steps) if sample_sigmas is None else sample_sigmas
    mu = calculate_shift(
        tokens,
        oracle.config.get("base_image_seq_len", 256),
        oracle.config.get("max_image_seq_len", 4096),
        oracle.config.get("base_shift", 0.5),
        oracle.config.get("max_shift", 1.15),
    )
    oracle.set_timesteps(sigmas=grid, mu=mu)
    return oracle.sigmas.numpy()


@pytest.mark.parametrize("tokens", [4, 64, 256, 1024, 4096, 8192, 16384, 16512, 65536])
@pytest.mark.parametrize("steps", [2, 3, 8, 20, 40, 50, 250])
def test_base_sigmas_equal_diffusers(steps: int, tokens: int, within: Within) -> None:
    actual = sigmas(read(BASE), steps, tokens)
    assert actual.dtype == np.float32
    assert actual[-1] == 0
    within(FIGURE, difference(actual, diffusers_sigmas(BASE, None, steps, tokens)), 1e-6)


@pytest.mark.parametrize("tokens", [64, 4096, 16384])
def test_turbo_sigmas_equal_diffusers(tokens: int, within: Within) -> None:
    config = read(TURBO, TURBO_SIGMAS)
    expected = diffusers_sigmas(TURBO, TURBO_SIGMAS, 8, tokens)
    within(FIGURE, difference(sigmas(config, None, tokens), expected), 1e-6)
    np.testing.assert_array_equal(sigmas(config, 8, tokens), sigmas(config, None, tokens))


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("terminal", [None, 0.0, 0.02, 0.1])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("grid", [None, TURBO_SIGMAS], ids=["even", "fixed"])
def test_every_combination_equals_diffusers(
    grid: list[float] | None, dynamic: bool, terminal: float | None, shift: float, within: Within
) -> None:
    scheduler = BASE | {"use_dynamic_shifting": dynamic, "shift_terminal": terminal, "shift": shift}
    expected = diffusers_sigmas(scheduler, grid, 8, 576)
    within(FIGURE, difference(sigmas(read(scheduler, grid), 8, 576), expected), 1e-6)


def test_even_grid_has_forty_steps_by_default() -> None:
    assert sigmas(read(BASE), None, 256).shape == (41,)


@pytest.mark.parametrize("steps", [-1, 0, 1])
def test_too_few_steps_for_the_stretch(steps: int) -> None:
    with pytest.raises(UsageError, match=f"{steps} steps? asked for, this schedule needs at least 2"):
        sigmas(read(BASE), steps, 256)


def test_one_step_without_the_stretch_equals_diffusers() -> None:
    np.testing.assert_array_equal(sigmas(read(TURBO), 1, 256), diffusers_sigmas(TURBO, None, 1, 256))
    with pytest.raises(UsageError, match="at least 1"):
        sigmas(read(TURBO), 0, 256)


@pytest.mark.parametrize("key", [key for key in BASE if not key.startswith("_") and BASE[key] is not False])
def test_missing_key_is_named(key: str) -> None:
    with pytest.raises(QwenImageError, match=f"scheduler_config.json: key '{key}' is missing"):
        read({name: value for name, value in BASE.items() if name != key})


def test_switches_that_are_off_may_be_missing() -> None:
    assert read({key: value for key, value in BASE.items() if value is not False}) == read(BASE)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_class_name", "EulerDiscreteScheduler"),
        ("time_shift_type", "linear"),
        ("num_train_timesteps", 500),
        ("use_karras_sigmas", True),
        ("use_beta_sigmas", True),
        ("use_exponential_sigmas", True),
        ("invert_sigmas", True),
        ("stochastic_sampling", True),
        ("a_later_option", "on"),
        ("use_dynamic_shifting", "yes"),
        ("base_shift", None),
        ("max_shift", "0.9"),
        ("shift", True),
        ("shift", 0),
        ("base_shift", float("nan")),
        ("shift_terminal", 1.0),
        ("shift_terminal", -0.1),
        ("max_image_seq_len", 256),
    ],
)
def test_unknown_value_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(QwenImageError, match=key):
        read(BASE | {key: value})


@pytest.mark.parametrize("grid", [[], "1.0", [1.0, "0.5"], [0.5, 1.0], [1.0, 0.0], [1.1, 0.5], [1.0, 1.0], [True], 3])
def test_bad_fixed_grid_is_refused(grid: object) -> None:
    with pytest.raises(QwenImageError, match="sample_sigmas"):
        read(TURBO, grid)


def test_no_value_is_refused_without_words() -> None:
    for change, other in changed({"scheduler": TURBO, "grid": TURBO_SIGMAS}):
        try:
            read(other.get("scheduler"), other.get("grid"))
        except QwenImageError:
            continue
        except Exception as error:
            pytest.fail(f"{change}: {error!r}")


def test_fixed_grid_of_one_step_cannot_be_stretched() -> None:
    with pytest.raises(QwenImageError, match="at least 2 steps, sample_sigmas has 1"):
        read(BASE, [1.0])


def test_time_features_equal_diffusers() -> None:
    levels = np.concatenate([sigmas(read(BASE), 40, 4096), np.array(TURBO_SIGMAS, np.float32)])
    expected = QwenImage21TemporalTimesteps(256)(torch.from_numpy(levels)).numpy()
    actual = np.stack([time_features(float(level)) for level in levels])
    assert actual.dtype == np.float32
    # Two of torch's 128 float32 exponentials are off by one ulp: at most 1000 * 6e-8 in the angle, and
    # 2e-6 over all 256.
    np.testing.assert_allclose(actual, expected, rtol=0, atol=6e-5)
    assert np.linalg.norm(actual - expected) / np.linalg.norm(expected) < 5e-6
