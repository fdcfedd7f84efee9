"""The settings that are compared: a solver, its steps and its noise levels; and Euler with as many evaluations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.runtime.request import RequestOptions
from qwen_image_engine.runtime.sampling.fast import FAST
from qwen_image_engine.runtime.sampling.inputs import SamplingInputs
from qwen_image_engine.runtime.sampling.schedule import DEFAULT_STEPS, MAX_STEPS, ScheduleConfig
from qwen_image_engine.runtime.sampling.solver import find_solver
from qwen_image_engine.runtime.sampling.spacing import ChosenLevels, Spacing, chosen_levels, levels_text

BASELINE = "euler"
"""Solver of the baseline, which is what the released pipeline takes."""

SOLVERS = (BASELINE, FAST.solver)
"""Solvers that are compared if the caller names none."""


@dataclass(frozen=True)
class Setting:
    """A solver with its number of steps and its noise levels.

    Attributes:
        solver: name of the solver.
        steps: number of its steps.
        sigmas: noise levels or the name of a spacing, as `QwenImage.prepare` takes them; None for the checkpoint's own.
    """

    solver: str
    steps: int
    sigmas: ChosenLevels = None

    @property
    def evaluations(self) -> int:
        """Number of evaluations of the network, each of which guidance doubles.

        Raises:
            UsageError: no solver has this name.
        """
        levels = np.linspace(1, 0, self.steps + 1).astype(np.float32)
        return len(find_solver(self.solver).stages(levels))

    @property
    def baseline(self) -> Setting:
        """Euler's method on the checkpoint's own noise levels with as many evaluations."""
        return Setting(BASELINE, self.evaluations)

    @property
    def line(self) -> str:
        """Name of the settings that differ in the number of steps alone, such as "ab2 karras"."""
        return " ".join([self.solver, *([] if self.sigmas is None else [levels_text(self.sigmas)])])

    @property
    def sampling(self) -> RequestOptions:
        """Options of a request that is drawn with the setting."""
        return {"solver": self.solver, "steps": self.steps, "sigmas": self.sigmas}

    def __str__(self) -> str:
        return " ".join([self.solver, str(self.steps), *([] if self.sigmas is None else [levels_text(self.sigmas)])])


SOLUTION = Setting("heun", 200)
"""The setting whose pictures, drawn by the reference, are the solution. docs/verify.md has the figures behind it."""


def every_setting(
    solvers: Sequence[str], steps: Sequence[int], sigmas: Spacing, schedule: ScheduleConfig
) -> tuple[Setting, ...]:
    """Return a setting for each solver and each number of steps.

    Args:
        solvers: names of the solvers; empty for `SOLVERS`.
        steps: numbers of steps; empty for the length of a list in `sigmas` or of the checkpoint's fixed grid, or else
            those of the preset and of the released pipeline.
        sigmas: noise levels, or the name of a spacing; None for the checkpoint's own.
        schedule: the checkpoint's schedule.
    """
    levels = chosen_levels(sigmas)
    if not steps:
        grid = levels if isinstance(levels, tuple) else schedule.sample_sigmas
        steps = (FAST.steps, DEFAULT_STEPS) if grid is None else (len(grid),)
    found = (Setting(solver, count, levels) for solver in solvers or SOLVERS for count in steps)
    return tuple(dict.fromkeys(found))


def check_settings(
    settings: Sequence[Setting],
    solution: Setting,
    schedule: ScheduleConfig,
    channels: int,
    sizes: Iterable[tuple[int, int]],
) -> None:
    """Raise if a setting, its baseline or the solution cannot be drawn at one of the sizes, without a network.

    Raises:
        UsageError: there are no settings; or a solver, a number of steps or noise levels are invalid.
    """
    if not settings:
        raise UsageError("no settings are given; name a solver and a number of steps")
    for width, height in sizes:
        for item in (solution, *settings):
            SamplingInputs.prepare(schedule, channels, width, height, item.steps, 0, 1, None, item.solver, item.sigmas)
        for item in settings:
            if item.evaluations > MAX_STEPS:
                raise UsageError(
                    f"{item.steps} steps of {item.solver} are {item.evaluations} evaluations, and euler beside them "
                    f"takes at most {MAX_STEPS} steps; ask for fewer"
                )
            own = item.baseline
            SamplingInputs.prepare(schedule, channels, width, height, own.steps, 0, 1, None, own.solver)


def with_baselines(settings: Sequence[Setting]) -> tuple[Setting, ...]:
    """Return the settings and all baselines, each once: baselines first, then by solver and number of steps."""
    found = dict.fromkeys([*(setting.baseline for setting in settings), *settings])
    order = list(dict.fromkeys(setting.line for setting in found))
    return tuple(sorted(found, key=lambda setting: (order.index(setting.line), setting.steps)))
