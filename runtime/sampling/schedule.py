"""The noise levels of a run: sigmas with dynamic shift and terminal stretch, or a fixed (Turbo) grid.

The formulas follow diffusers' `FlowMatchEulerDiscreteScheduler.set_timesteps` with the arguments that
`QwenImage21Pipeline` gives.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.runtime.sampling.spacing import SPACINGS, Spacing, spaced
from qwen_image_engine.runtime.system.json_schema import (
    MISSING,
    NUMBER,
    TRUTH,
    Reader,
    described,
    is_list_of,
    is_number,
    leaf,
)
from qwen_image_engine.runtime.system.text import plural

DEFAULT_STEPS = 40
MAX_STEPS = 1000
"""The schedule's num_train_timesteps: the number of noise levels in training."""

_LARGEST_EXPONENT = 15
"""Largest mu. Beyond e^15, float32 has no level between noise and 1. The released schedule reaches it at 8,600 pixels a
side."""


_TRAINED_LEVELS = leaf(
    f"{MAX_STEPS} (no other number is implemented)", lambda value: is_number(value) and value == MAX_STEPS
)
_TERMINAL = leaf(
    "null or a number from 0 to below 1", lambda value: value is None or (is_number(value) and 0.0 <= value < 1.0)
)
_GRID = leaf(
    "a list of numbers or null",
    lambda value: value is None or (isinstance(value, list | tuple) and is_list_of([*value], is_number)),
)


@dataclass(frozen=True)
class ScheduleConfig:
    """The configuration of the sigmas: `scheduler/scheduler_config.json` and `sample_sigmas` of `model_index.json`.

    Attributes:
        use_dynamic_shifting: whether the number of target tokens decides the shift; otherwise it is the constant
            `shift`.
        shift: the constant shift.
        base_shift: mu at `base_image_seq_len` tokens.
        max_shift: mu at `max_image_seq_len` tokens; the line between the two points is not clamped.
        base_image_seq_len: number of target tokens at `base_shift`.
        max_image_seq_len: number of target tokens at `max_shift`.
        shift_terminal: the last sigma before 0, to which the others are stretched; None for no stretch.
        sample_sigmas: the checkpoint's own grid without the final 0; None for an even grid of any length.
    """

    use_dynamic_shifting: bool
    shift: float
    base_shift: float
    max_shift: float
    base_image_seq_len: int
    max_image_seq_len: int
    shift_terminal: float | None
    sample_sigmas: tuple[float, ...] | None

    @classmethod
    def from_json(cls, scheduler: Mapping[str, object], sample_sigmas: Any, where: str) -> Self:
        """Read and check the configuration.

        Args:
            scheduler: the object in `scheduler_config.json`.
            sample_sigmas: the value of `sample_sigmas` in `model_index.json`; None if there is none.
            where: the file's name, for errors.

        Raises:
            QwenImageError: a key is missing or has a value that is invalid or not implemented here.
        """
        reader = Reader(scheduler, where)
        if reader.get("_class_name") is not MISSING:
            reader.expect("_class_name", "FlowMatchEulerDiscreteScheduler", why="no other is implemented")
        reader.take("num_train_timesteps", _TRAINED_LEVELS)
        reader.expect("time_shift_type", "exponential", why="no other is implemented")
        terminal = reader.take("shift_terminal", _TERMINAL)
        _GRID(sample_sigmas, f"{where}: sample_sigmas")
        config = cls(
            use_dynamic_shifting=reader.take("use_dynamic_shifting", TRUTH),
            shift=reader.number("shift"),
            base_shift=float(reader.take("base_shift", NUMBER)),
            max_shift=float(reader.take("max_shift", NUMBER)),
            base_image_seq_len=int(reader.number("base_image_seq_len")),
            max_image_seq_len=int(reader.number("max_image_seq_len")),
            shift_terminal=float(terminal) if terminal else None,  # diffusers reads 0 as "no stretch"
            sample_sigmas=_fixed_grid(sample_sigmas, where),
        )
        if config.max_image_seq_len <= config.base_image_seq_len:
            raise QwenImageError(
                f"{where}: max_image_seq_len {config.max_image_seq_len} must exceed "
                f"base_image_seq_len {config.base_image_seq_len}"
            )
        if config.shift_terminal is not None and config.sample_sigmas is not None and len(config.sample_sigmas) < 2:
            raise QwenImageError(f"{where}: shift_terminal stretches a grid of at least 2 steps, sample_sigmas has 1")
        for key in reader.ignored():
            # Karras, beta, inverted or stochastic sampling and whatever comes after them: harmless only when off.
            if not key.startswith("_") and scheduler[key] is not None and scheduler[key] is not False:
                reader.refuse(key, "false or null: it is not implemented")
        return config


def sigmas(
    config: ScheduleConfig, num_steps: int | None, target_tokens: int, spacing: Spacing = None
) -> NDArray[np.float32]:
    """Return the noise levels of a run, from 1 (noise) down to 0 (picture).

    The formula is s' = e^mu / (e^mu + 1/s - 1), with mu linear in the number of target tokens. The result is stretched
    so that the last level is `shift_terminal`.

    Args:
        config: the schedule.
        num_steps: number of steps N; None for the length of the list in `spacing`, else of the fixed grid, or 40 if
            there is none. A fixed grid is interpolated to any other number.
        target_tokens: number of latents of the target, height/16 * width/16.
        spacing: a list of levels s without the final 0, which takes the place of the checkpoint's grid and is shifted
            and stretched like it, as the argument `sigmas` of diffusers' pipelines is; or a name of
            `runtime.sampling.spacing.SPACINGS`, which places N levels between the first and the last of the
            checkpoint's own; None for the checkpoint's own.

    Returns:
        Noise levels (N + 1,) float32, the last 0.

    Raises:
        UsageError: there are fewer steps than the formula needs, or more than `MAX_STEPS`; the list has another length
            than `num_steps` or is no list of falling levels in (0, 1]; no spacing has this name; or the picture is so
            large that every level is noise.
    """
    given = None if spacing is None or isinstance(spacing, str) else _given_grid(spacing)
    if given is not None and num_steps is not None and num_steps != len(given):
        found = f"{plural(num_steps, 'step')} asked for, and {plural(len(given), 'sigma')}"
        raise UsageError(
            f"{found}; leave out the number of steps", for_client=f"{found}; leave out 'num_inference_steps'"
        )
    own = given or config.sample_sigmas
    steps = num_steps if num_steps is not None else DEFAULT_STEPS if own is None else len(own)
    fewest = 1 if config.shift_terminal is None else 2  # the stretch divides by 1 - sigma, 0 for a single step
    if given is not None and steps < fewest:
        raise UsageError(f"{plural(steps, 'sigma')} given, expected at least {fewest}: this schedule stretches them")
    if steps < fewest:
        raise UsageError(f"{plural(steps, 'step')} asked for, this schedule needs at least {fewest}")
    if steps > MAX_STEPS:
        raise UsageError(f"{steps} steps asked for, at most {MAX_STEPS} are different from one another")
    levels = _transformed(config, _even_or_fixed(own, steps), target_tokens)
    if isinstance(spacing, str):
        levels = spaced(spacing, levels)
    levels = np.append(levels, 0).astype(np.float32)
    if not (np.diff(levels) < 0).all():
        raise UsageError(
            f"{steps} sigmas lie so close together that two noise levels are equal in float32; leave some out"
        )
    return levels


def _even_or_fixed(grid: Sequence[float] | None, steps: int) -> NDArray[np.float32]:
    """Return an even grid of `steps` levels, or a fixed one, interpolated if it has another number of levels.

    The fixed grid with its final 0 is a line over the share of the steps taken.
    """
    if grid is None:
        return np.linspace(1.0, 1.0 / steps, steps).astype(np.float32)
    if len(grid) != steps:
        taken = np.linspace(0.0, len(grid), steps + 1)[:-1]
        grid = np.interp(taken, np.arange(len(grid) + 1), [*grid, 0.0]).tolist()
    return np.array(grid, np.float32)


def _transformed(config: ScheduleConfig, grid: NDArray[np.float32], target_tokens: int) -> NDArray[np.float32]:
    """Return the levels of a grid after the schedule's shift and stretch.

    Raises:
        UsageError: the picture is so large, or the levels are so near to 1, that every level is noise.
    """
    if config.use_dynamic_shifting:
        exponent = shift_exponent(config, target_tokens)
        if exponent > _LARGEST_EXPONENT:
            raise UsageError(
                f"{target_tokens} latents shift this schedule by e^{exponent:.3g}, expected at most "
                f"e^{_LARGEST_EXPONENT}, where every level is noise; ask for a smaller picture"
            )
        growth = math.exp(exponent)
        grid = growth / (growth + (1.0 / grid - 1.0))
    else:
        grid = config.shift * grid / (1.0 + (config.shift - 1.0) * grid)
    if config.shift_terminal is not None:
        complement = 1.0 - grid
        if complement[-1] <= 0:
            raise UsageError("every sigma is 1 in float32, expected the last one below; ask for lower sigmas")
        grid = 1.0 - complement / (complement[-1] / (1.0 - config.shift_terminal))
    return grid


def shift_exponent(config: ScheduleConfig, target_tokens: int) -> float:
    """Return mu on the line through the two (tokens, shift) points, not clamped (diffusers `calculate_shift`)."""
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    return target_tokens * slope + (config.base_shift - slope * config.base_image_seq_len)


def _fixed_grid(values: Sequence[float] | None, where: str) -> tuple[float, ...] | None:
    if values is None:
        return None
    grid = tuple(float(value) for value in values)
    if not falls(grid):
        raise QwenImageError(f"{where}: sample_sigmas {list(grid)} must fall from at most 1 and stay above 0")
    return grid


def _given_grid(values: Sequence[float]) -> tuple[float, ...]:
    """Return a list of levels that a caller gave.

    Raises:
        UsageError: `values` is no list of numbers that fall from at most 1 and stay above 0.
    """
    shown = described(values)
    numbers = [*values] if isinstance(values, Sequence | np.ndarray) else []
    if not numbers or not all(isinstance(value, Real) and not isinstance(value, bool) for value in numbers):
        raise UsageError(f"sigmas {shown}: expected a list of numbers, or one of {', '.join(SPACINGS)}")
    grid = tuple(float(value) for value in numbers)
    if not falls(grid):
        raise UsageError(
            f"sigmas {shown}: expected numbers that fall, each below the one before, from at most 1 and above 0; the "
            "final 0 is not among them"
        )
    return grid


def falls(grid: Sequence[float]) -> bool:
    """Return whether levels fall from at most 1, each below the one before, and stay above 0."""
    return all(a > b for a, b in pairwise(grid)) and grid[-1] > 0.0 and grid[0] <= 1.0
