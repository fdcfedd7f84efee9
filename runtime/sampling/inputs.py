"""The inputs of a sampling run: size, noise levels and noise. All are checked before any network runs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral
from typing import Self

import numpy as np
from numpy.typing import NDArray

from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.engines.core.loop import Stage
from qwen_image_engine.runtime.model.latents import pack_latents
from qwen_image_engine.runtime.model.size import MAX_IMAGES, latent_size
from qwen_image_engine.runtime.sampling.noise import check_seed, draw_noise
from qwen_image_engine.runtime.sampling.schedule import ScheduleConfig, sigmas
from qwen_image_engine.runtime.sampling.solver import SolverRow, find_solver
from qwen_image_engine.runtime.sampling.spacing import ChosenLevels, Spacing, chosen_levels
from qwen_image_engine.runtime.system.text import plural


@dataclass(frozen=True, eq=False)
class SamplingInputs:
    """The size, noise levels and initial latents of a run.

    Attributes:
        rows: rows of latents, height / 16.
        columns: columns of latents, width / 16.
        channels: channels of latents.
        sigmas: noise levels (N + 1,) float32, falling to 0.
        solver: the solver.
        spacing: the caller's own choice of noise levels, a name or a list; None for the checkpoint's.
        seed: seed of the noise; not used if the caller gave latents.
        num_images: number of pictures of the batch.
        given: the caller's own initial latents (num_images, rows * columns, channels) float32, or None.
    """

    rows: int
    columns: int
    channels: int
    sigmas: NDArray[np.float32]
    solver: SolverRow
    spacing: ChosenLevels
    seed: int
    num_images: int
    given: NDArray[np.float32] | None

    @classmethod
    def prepare(
        cls,
        schedule: ScheduleConfig,
        channels: int,
        width: int,
        height: int,
        steps: int | None,
        seed: int,
        num_images: int,
        latents: NDArray[np.float32] | None,
        solver: str = "euler",
        spacing: Spacing = None,
    ) -> Self:
        """Check a request and return its inputs. The noise is drawn when it is first used.

        Raises:
            UsageError: size, steps, seed or number of images is not a whole number or is out of range, the given
                latents have another dtype or shape or are not finite, no solver has this name, the solver needs more
                steps, or `spacing` is invalid (`schedule.sigmas`).
        """
        row = find_solver(solver)
        for name, value in (("steps", 0 if steps is None else steps), ("seed", seed), ("num_images", num_images)):
            _check_whole(name, value)
        if latents is not None and not isinstance(latents, np.ndarray):
            raise UsageError(f"the given latents are {type(latents).__name__}, expected a numpy array")
        rows, columns = latent_size(width, height)
        levels = sigmas(schedule, steps, rows * columns, spacing)
        if len(levels) - 1 < row.fewest_steps:
            given = plural(len(levels) - 1, "step")
            raise UsageError(
                f"solver {row.name} with {given}: it needs at least {row.fewest_steps}, since it starts with a step of "
                "Euler's; ask for more, or for solver euler"
            )
        if not 1 <= num_images <= MAX_IMAGES:
            raise UsageError(f"{num_images} images asked for, expected 1 to {MAX_IMAGES}")
        if latents is None:
            check_seed(seed)
        else:
            expected = (num_images, rows * columns, channels)
            if latents.dtype != np.float32 or latents.shape != expected:
                raise UsageError(
                    f"the given latents are {latents.dtype} {latents.shape}, expected float32 {expected}: "
                    f"{num_images} of {width}x{height}, (batch, tokens, channels)"
                )
            if not np.isfinite(latents).all():
                raise UsageError("the given latents hold values that are not finite")
            latents = np.ascontiguousarray(latents)
        return cls(rows, columns, channels, levels, row, chosen_levels(spacing), seed, num_images, latents)

    @property
    def steps(self) -> int:
        """Number of steps of the solver."""
        return len(self.sigmas) - 1

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """Stages of the solver: one evaluation of the network each."""
        return self.solver.stages(self.sigmas)

    @property
    def evaluations_by_step(self) -> list[int]:
        """Number of evaluations of the network in each step."""
        return [*Counter(stage.step for stage in self.stages).values()]

    @property
    def evaluations(self) -> int:
        """Number of evaluations of the network, each of which guidance doubles."""
        return len(self.stages)

    @cached_property
    def latents(self) -> NDArray[np.float32]:
        """Initial latents (num_images, rows * columns, channels) float32 at sigmas[0].

        The noise of all images is drawn at once from the seed, as in diffusers.
        """
        if self.given is not None:
            return self.given
        return pack_latents(draw_noise((self.num_images, 1, self.channels, self.rows, self.columns), self.seed))

    def with_seed(self, seed: int) -> Self:
        """Return the same inputs with another seed.

        Raises:
            UsageError: the seed is not a whole number or is out of range, or the initial latents were given.
        """
        if self.given is not None:
            raise UsageError(f"seed {seed} of a run whose latents were given: noise is drawn without them only")
        _check_whole("seed", seed)
        check_seed(seed)
        return replace(self, seed=seed)


def _check_whole(name: str, value: object) -> None:
    if not isinstance(value, Integral):
        raise UsageError(f"{name} is {value!r}, expected a whole number")
