"""Trajectories left to themselves, and the control: on velocities whose integrals are known, and on a real bundle."""

import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qwen_image_engine.engines.core.contract import CONTRACTS
from qwen_image_engine.export.verify.difference import difference
from qwen_image_engine.export.verify.free_running import divergence, free_running
from qwen_image_engine.export.verify.parity import verify_bundle
from qwen_image_engine.export.verify.recording import Call, Case, Recording, TeacherStep
from qwen_image_engine.reference.pipeline import reference_pipeline
from qwen_image_engine.runtime.pipeline import QwenImage

SIGMAS = (1.0, 0.5, 0.25)
CASE = Case("quick", "a red circle", 64, 32)


class Step:
    """An engine whose velocity is `rate` times the latents, and 1 more."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.contract = CONTRACTS["step"]

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {"velocity": np.float32(self.rate) * inputs["latents"] + np.float32(1)}

    def close(self) -> None:
        pass


def recorded(step: Step) -> Recording:
    """Its Euler steps from noise, in float64 rounded once a step."""
    latents = np.random.default_rng(0).standard_normal((1, 6, 4)).astype(np.float32)
    calls, steps = [], []
    for sigma, following in zip(SIGMAS, (*SIGMAS[1:], 0.0), strict=True):
        inputs = {"latents": latents, "time_features": np.zeros((1, 256), np.float32)}
        outputs = step.run(inputs)
        calls.append(Call(inputs, outputs))
        steps.append(TeacherStep(latents, sigma, outputs["velocity"]))
        latents = (latents + (following - sigma) * outputs["velocity"].astype(np.float64)).astype(np.float32)
    return Recording(CASE, {"step": calls}, steps, latents)


def test_the_reference_does_not_leave_itself() -> None:
    step = Step(0.7)
    recording = recorded(step)
    found = divergence(
        lambda x, _: step.run({"latents": x})["velocity"], recording, recording.steps[0].latents
    ).distances
    assert len(found) == 3
    assert max(found) < 1e-6
    exact = [difference(item.velocity, item.velocity) for item in recording.steps]
    own = free_running(recording, found, exact, step)
    assert own.perturbation == 0
    assert max(own.control) < 1e-6
    assert own.sigmas == (0.5, 0.25, 0.0)


def test_a_constant_error_and_its_control() -> None:
    """With a velocity that ignores the latents, both are known: an error grows with time, a push stays as it is."""
    step = Step(0.0)
    recording = recorded(step)
    wrong = np.float32(1.1)
    found = divergence(lambda x, _: np.full_like(x, wrong), recording, recording.steps[0].latents).distances
    forced = [difference(np.full_like(item.velocity, wrong), item.velocity) for item in recording.steps]
    own = free_running(recording, found, forced, step)
    norms = [float(np.linalg.norm(x)) for x in (*(item.latents for item in recording.steps[1:]), recording.final)]
    size = math.sqrt(recording.final.size)
    assert [error * norm for error, norm in zip(own.engine, norms, strict=True)] == pytest.approx(
        [0.1 * size * passed for passed in (0.5, 0.75, 1.0)], rel=1e-4
    )
    moved = 0.1 * size * 0.5
    assert own.perturbation * np.linalg.norm(recording.steps[0].latents) == pytest.approx(moved, rel=1e-4)
    assert [error * norm for error, norm in zip(own.control, norms, strict=True)] == pytest.approx(
        [moved] * 3, rel=1e-4
    )


def test_values_that_are_not_finite() -> None:
    step = Step(0.7)
    recording = recorded(step)
    found = divergence(
        lambda x, sigma: x * (np.nan if sigma < 1 else 1), recording, recording.steps[0].latents
    ).distances
    assert math.isfinite(found[0])
    assert found[1:] == (math.inf, math.inf)
    broken = [difference(item.velocity * np.nan, item.velocity) for item in recording.steps]
    own = free_running(recording, found, broken, step)
    assert own.to_json()["relative_l2_by_step"][1:] == [None, None]
    assert own.to_json()["perturbation"] is None
    assert own.to_json()["control_by_step"] == [None] * 3


def test_a_bundle_is_left_to_itself_as_the_sampler_does_it(
    bundle: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    checkpoint, exported = bundle("narrow")
    folder = shutil.copytree(exported, tmp_path / "bundle")
    (own,) = verify_bundle(folder, cases=[CASE]).free_running
    finals = []
    for pipeline in (QwenImage.load(folder), reference_pipeline(checkpoint)):
        with pipeline:
            conditioning = pipeline.encode(CASE.prompt)
            *_, last = pipeline.sample(conditioning, width=64, height=32, steps=8, seed=CASE.seed)
            finals.append(last.latents)
    assert own.engine[-1] == pytest.approx(difference(*finals).relative_l2, rel=1e-3)
    assert len(own.engine) == len(own.control) == len(own.sigmas) == 8
    assert own.sigmas[-1] == 0
    assert 0 < own.perturbation < 1e-5
    assert all(0 < error < 1e-4 for error in own.control)
