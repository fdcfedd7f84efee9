"""Settings, and the baseline of as many evaluations."""

from dataclasses import replace

import pytest

from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.export.verify.pictures.settings import (
    SOLUTION,
    Setting,
    check_settings,
    every_setting,
    with_baselines,
)
from qwen_image_engine.runtime.sampling.inputs import SamplingInputs
from qwen_image_engine.runtime.sampling.solver import SOLVERS
from tests.support.numpy_engines import SCHEDULE


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("steps", [2, 7, 14])
@pytest.mark.parametrize("sigmas", [None, "karras"])
def test_evaluations_are_those_of_a_run(solver: str, steps: int, sigmas: str | None) -> None:
    setting = Setting(solver, steps, sigmas)
    taken = [
        SamplingInputs.prepare(SCHEDULE, 4, 64, 64, item.steps, 0, 1, None, item.solver, item.sigmas).evaluations
        for item in (setting, setting.baseline)
    ]
    assert taken == [setting.evaluations, setting.evaluations]
    assert setting.baseline == Setting("euler", 2 * steps - 1 if solver == "heun" else steps)


def test_every_solver_with_every_number() -> None:
    assert every_setting(["ab2", "heun"], [4, 8], None, SCHEDULE) == (
        Setting("ab2", 4),
        Setting("ab2", 8),
        Setting("heun", 4),
        Setting("heun", 8),
    )
    assert every_setting([], [], "model", SCHEDULE) == tuple(
        Setting(solver, steps) for solver in ("euler", "ab2") for steps in (14, 40)
    )
    assert every_setting(["ab2"], [], [1.0, 0.5, 0.25], SCHEDULE) == (Setting("ab2", 3, (1.0, 0.5, 0.25)),)
    turbo = replace(SCHEDULE, sample_sigmas=(1.0, 0.7, 0.4, 0.2))
    assert every_setting(["ab2"], [], None, turbo) == (Setting("ab2", 4),)


def test_baselines_come_first_and_once() -> None:
    found = with_baselines([Setting("ab2", 14), Setting("heun", 7), Setting("euler", 13), Setting("euler", 8, "beta")])
    assert list(map(str, found)) == ["euler 8", "euler 13", "euler 14", "ab2 14", "heun 7", "euler 8 beta"]
    assert [item.line for item in found[-3:]] == ["ab2", "heun", "euler beta"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (Setting("rk4", 8), "solver 'rk4' is unknown"),
        (Setting("ab2", 1), "1 step asked for, this schedule needs at least 2"),
        (Setting("euler", 2000), "2000 steps asked for, at most 1000"),
        (Setting("ab2", 3, (1.0, 0.5, 0.5)), "expected numbers that fall"),
        (Setting("ab2", 4, (1.0, 0.5)), "4 steps asked for, and 2 sigmas"),
        (Setting("ab2", 4, "cosine"), "sigmas 'cosine'"),
        (Setting("heun", 600), "1199 evaluations, and euler"),
    ],
)
def test_what_cannot_be_drawn(setting: Setting, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_settings([setting], SOLUTION, SCHEDULE, 4, [(64, 64)])


def test_the_solution_needs_no_baseline() -> None:
    check_settings([Setting("ab2", 14)], Setting("heun", 600), SCHEDULE, 4, [(64, 64)])
    with pytest.raises(UsageError, match="1001 steps"):
        check_settings([Setting("ab2", 14)], Setting("heun", 1001), SCHEDULE, 4, [(64, 64)])


def test_nothing_asked_for() -> None:
    with pytest.raises(UsageError, match="no settings"):
        check_settings([], SOLUTION, SCHEDULE, 4, [(64, 64)])
