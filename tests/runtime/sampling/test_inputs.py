"""The solver and the noise levels of a request: what is recorded, and what is refused."""

from typing import Any

import pytest

from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.runtime.sampling.inputs import SamplingInputs
from tests.runtime.sampling.test_schedule import TURBO, TURBO_SIGMAS, read


def prepare(**options: Any) -> SamplingInputs:
    given = {"steps": None, "seed": 0, "num_images": 1, "latents": None} | options
    return SamplingInputs.prepare(read(TURBO, TURBO_SIGMAS), 4, 64, 64, **given)


def test_evaluations_are_counted() -> None:
    assert (prepare().steps, prepare().evaluations) == (8, 8)
    heun = prepare(solver="heun", steps=4)
    assert (heun.steps, heun.evaluations, heun.evaluations_by_step) == (4, 7, [2, 2, 2, 1])


@pytest.mark.parametrize(
    ("given", "kept"), [(None, None), ("model", None), ("beta", "beta"), ([1, 0.5], (1.0, 0.5)), ((0.7,), (0.7,))]
)
def test_the_choice_of_levels_is_kept(given: Any, kept: object) -> None:
    assert prepare(spacing=given).spacing == kept


@pytest.mark.parametrize("solver", ["ab2", "dpm++2m", "unipc", "heun"])
def test_a_solver_that_starts_as_eulers_needs_a_second_step(solver: str) -> None:
    assert prepare(steps=1).evaluations == 1
    with pytest.raises(UsageError, match=r"with 1 step: it needs at least 2, since it starts with a step of Euler's"):
        prepare(steps=1, solver=solver)


@pytest.mark.parametrize("solver", ["Euler", "", None, 3, ["ab2"]])
def test_a_solver_without_a_row_is_refused(solver: object) -> None:
    with pytest.raises(UsageError, match="is unknown, expected one of euler, ab2"):
        prepare(solver=solver)
