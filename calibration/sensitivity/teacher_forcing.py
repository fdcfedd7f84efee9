"""The step's error along trajectories of the reference (teacher forcing): every step reads the reference's latents.

These errors come from the quantisation alone. Free-running trajectories diverge, however similar their networks are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qwen_image_engine.calibration.observe.request import DTYPES, Request
from qwen_image_engine.calibration.sensitivity.simulation import Simulation
from qwen_image_engine.engines.core.components import COMPONENTS
from qwen_image_engine.engines.core.contract import contract
from qwen_image_engine.engines.core.engine import Engine
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.reference.components import dims
from qwen_image_engine.reference.load import load_network
from qwen_image_engine.reference.networks.transformer import Transformer
from qwen_image_engine.reference.pipeline import pipeline_on
from qwen_image_engine.reference.torch_engine import TorchEngine
from qwen_image_engine.runtime.component_pool import ComponentPool
from qwen_image_engine.runtime.model.rope import rotary_tables
from qwen_image_engine.runtime.model.sequence import TokenSequence, text_positions
from qwen_image_engine.runtime.model.time import time_features
from qwen_image_engine.runtime.pipeline import QwenImage
from qwen_image_engine.runtime.sampling.inputs import SamplingInputs

Errors = tuple[tuple[float, ...], ...]
"""Relative L2 of the step's output, by trajectory and step."""


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A trajectory of the reference: the inputs of the prefix and of the steps, on the networks' device.

    Attributes:
        prompt: prompt of the picture.
        size: (width, height) in pixels.
        seed: seed of the noise.
        sigmas: noise levels of the latents, one a step.
        prefix: inputs of the prefix: text states (1, P, context) in the network's dtype; cos and sin (P, d/2) float32.
        steps: inputs of each step: latents (1, N, C) in the network's dtype and time features (1, 256) float32.
        rotary: cos and sin (N, d/2) float32 of the tokens of the target image.
    """

    prompt: str
    size: tuple[int, int]
    seed: int
    sigmas: tuple[float, ...]
    prefix: tuple[Tensor, Tensor, Tensor]
    steps: Sequence[tuple[Tensor, Tensor]]
    rotary: tuple[Tensor, Tensor]


def record(request: Request, network: Transformer) -> tuple[Trajectory, ...]:
    """Draw the pictures of `request` with `network`, guidance included. Only the prompt's branch is recorded.

    Raises:
        QwenImageError: the text encoder's tensors do not match the network, or a result is not finite.
    """
    sizes, dtype = dims(request.checkpoint), DTYPES[request.dtype]
    encoder = load_network(request.checkpoint, "text_encoder", dtype).to(request.device)
    networks = {"text_encoder": encoder, "transformer": network}

    def engine(component: str) -> Engine:
        return TorchEngine(contract(component, sizes), networks[COMPONENTS[component].network])

    pipeline = pipeline_on(request.checkpoint, ComponentPool(engine), request.dtype, request.tokenizer)
    return tuple(_draw(request, pipeline, index) for index in range(len(request.prompts)))


def _draw(request: Request, pipeline: QwenImage, index: int) -> Trajectory:
    size, seed = request.sizes[index % len(request.sizes)], request.seed + index
    width, height = size
    conditioning = pipeline.encode(request.prompts[index])
    negative = None if request.negative_prompt is None else pipeline.encode(request.negative_prompt)
    start = SamplingInputs.prepare(
        request.schedule, pipeline.facts.channels, width, height, request.steps, seed, 1, None
    )
    taken = pipeline.sample(
        conditioning,
        negative=negative,
        guidance=request.guidance,
        width=width,
        height=height,
        steps=request.steps,
        seed=seed,
    )
    latents = [start.latents, *(step.latents for step in taken)][:-1]
    sigmas = tuple(float(sigma) for sigma in start.sigmas[:-1])
    axes, device, dtype = pipeline.facts.axes_dims_rope, request.device, DTYPES[request.dtype]
    target = TokenSequence.text_to_image(conditioning.length, start.rows, start.columns).target

    def rotary(positions: NDArray[np.int32]) -> tuple[Tensor, Tensor]:
        cos, sin = rotary_tables(positions, axes)
        return torch.as_tensor(cos, device=device), torch.as_tensor(sin, device=device)

    return Trajectory(
        prompt=request.prompts[index],
        size=size,
        seed=seed,
        sigmas=sigmas,
        prefix=(
            torch.as_tensor(conditioning.text_states, device=device).to(dtype),
            *rotary(text_positions(conditioning.length)),
        ),
        steps=[
            (
                torch.as_tensor(values, device=device).to(dtype),
                torch.as_tensor(time_features(sigma)[None], device=device),
            )
            for values, sigma in zip(latents, sigmas, strict=True)
        ],
        rotary=rotary(target),
    )


class TeacherForcing:
    """The measurement of quantised linears on recorded trajectories."""

    def __init__(self, simulation: Simulation, trajectories: Sequence[Trajectory]) -> None:
        """Run the unquantised network. Errors are relative to its velocities."""
        self._simulation, self._trajectories = simulation, trajectories
        self._expected = [list(self._velocities(trajectory)) for trajectory in trajectories]

    @property
    def steps(self) -> int:
        """Number of steps of all trajectories together."""
        return sum(len(trajectory.steps) for trajectory in self._trajectories)

    def errors(self, linears: Collection[str], advance: Callable[[], None] | None = None) -> Errors:
        """Measure the errors with `linears` quantised in prefix and step. `advance` is called after each step.

        Raises:
            QwenImageError: a velocity is not finite.
        """
        with self._simulation.quantised(linears):
            return tuple(
                tuple(self._errors(trajectory, expected, linears, advance))
                for trajectory, expected in zip(self._trajectories, self._expected, strict=True)
            )

    def _errors(
        self,
        trajectory: Trajectory,
        expected: Sequence[Tensor],
        linears: Collection[str],
        advance: Callable[[], None] | None,
    ) -> Iterator[float]:
        for index, (velocity, wanted) in enumerate(zip(self._velocities(trajectory), expected, strict=True)):
            error = float(torch.linalg.vector_norm(velocity - wanted) / torch.linalg.vector_norm(wanted))
            if not math.isfinite(error):
                what = next(iter(linears)) if len(linears) == 1 else f"{len(linears)} linears"
                raise QwenImageError(
                    f"step {index + 1} with {what} quantised: the velocity is not finite or zero throughout; "
                    "calibrate in bf16 or fp32"
                )
            yield error
            if advance is not None:
                advance()

    def _velocities(self, trajectory: Trajectory) -> Iterator[Tensor]:
        """Yield the velocity (1, N, C) float64 of every step."""
        with torch.inference_mode():
            cache = self._simulation.prefix(*trajectory.prefix)
        for latents, features in trajectory.steps:
            with torch.inference_mode():
                yield self._simulation.step(latents, features, *trajectory.rotary, cache).double()
