"""The distance of a bundle's own trajectory from the reference's, beside the distance of a control.

Trajectories are chaotic, so a distance at the end says little alone. The control is the reference itself, from initial
latents with random noise on them. The noise is as large as the engine's error after its first step. If an engine's
trajectory leaves the reference no faster than the control does, its later steps add no error of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen_image_engine.engines.core.engine import Engine
from qwen_image_engine.export.verify.difference import Difference, difference, finite
from qwen_image_engine.export.verify.recording import Recording
from qwen_image_engine.runtime.model.time import time_features
from qwen_image_engine.runtime.sampling.solver import SOLVERS, State, Velocity

SEED = 1
"""Seed of the control's noise."""


@dataclass(frozen=True)
class FreeRunning:
    """The trajectories of one case, compared after each step.

    They have no threshold.

    Attributes:
        case: name of the request.
        sigmas: sigma of the latents after each step; the last is 0.
        engine: relative L2 of the engine's latents after each step.
        perturbation: relative L2 of the control's initial latents; infinite if the error of the engine's first step is.
        control: relative L2 of the control's latents after each step.
    """

    case: str
    sigmas: tuple[float, ...]
    engine: tuple[float, ...]
    perturbation: float
    control: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON; a value that is not finite is null."""
        return {
            "case": self.case,
            "sigma_by_step": list(self.sigmas),
            "relative_l2_by_step": [finite(value) for value in self.engine],
            "perturbation": finite(self.perturbation),
            "control_by_step": [finite(value) for value in self.control],
        }


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A trajectory of latents, compared with a recording.

    Attributes:
        distances: relative L2 from the recorded latents after each step.
        final: the last latents; None if they are not finite.
    """

    distances: tuple[float, ...]
    final: NDArray[np.float32] | None


@dataclass(frozen=True)
class DrawnCase:
    """The pictures that one case ends in, drawn by the reference and by a bundle after its own trajectory.

    Attributes:
        case: name of the request.
        reference: picture of the reference, a PNG.
        engine: picture of the bundle, a PNG; None if the bundle could not draw one.
        missing: reason why the bundle has no picture; "" if it has one.
    """

    case: str
    reference: bytes
    engine: bytes | None
    missing: str = ""


def divergence(velocity: Velocity, recording: Recording, start: NDArray[np.float32]) -> Trajectory:
    """Follow a velocity from `start`; distances are infinite once a value is not finite."""
    following = _following(recording)
    afterwards = [*(step.latents for step in recording.steps[1:]), recording.final]
    found: list[float] = []
    # Not `integrate`: values which are not finite are a finding here.
    stages = SOLVERS["euler"].stages(np.array([*recording.sigmas, 0.0], np.float32))
    state = State(start)
    for stage, expected in zip(stages, afterwards, strict=True):
        state.apply(stage, velocity(state.latents, stage.sigma))
        found.append(difference(state.latents, expected).relative_l2)
        if math.isinf(found[-1]):
            break
    distances = (*found, *[math.inf] * (len(following) - len(found)))
    return Trajectory(distances, state.latents if math.isfinite(distances[-1]) else None)


def free_running(
    recording: Recording, engine: tuple[float, ...], forced: Sequence[Difference], step: Engine
) -> FreeRunning:
    """Return a case with its control.

    Args:
        recording: recording of the case.
        engine: distances of the engine's `divergence`.
        forced: differences of the engine's velocities on the reference's latents, one for each step.
        step: the reference's component that runs every step.
    """
    first, following = recording.steps[0], _following(recording)
    moved = abs(following[0] - first.sigma) * forced[0].relative_l2 * float(np.linalg.norm(first.velocity))
    perturbation, control = math.inf, (math.inf,) * len(following)
    if math.isfinite(moved):
        noise = np.random.default_rng(SEED).standard_normal(first.latents.shape)
        start = (first.latents + noise * (moved / np.linalg.norm(noise))).astype(np.float32)
        perturbation = moved / float(np.linalg.norm(first.latents))
        control = divergence(_reference_velocity(recording, step), recording, start).distances
    return FreeRunning(recording.case.name, following, engine, perturbation, control)


def _following(recording: Recording) -> tuple[float, ...]:
    return (*recording.sigmas[1:], 0.0)


def _reference_velocity(recording: Recording, step: Engine) -> Velocity:
    """Return the reference's velocity after the case's prompt and reference images.

    The inputs are the inputs of a recorded call, with other latents.
    """
    inputs = recording.calls[step.contract.component][0].inputs
    tokens = recording.final.shape[1]
    images = inputs["latents"][:, :-tokens]

    def velocity(latents: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
        changed = {
            "latents": np.concatenate([images, latents], axis=1),
            "time_features": time_features(sigma)[None],
        }
        return np.asarray(step.run({**inputs, **changed})["velocity"][:, -tokens:])

    return velocity
