"""Recordings of the fp32 reference on a few real requests: inputs and outputs of every component, and every step.

Each component of a bundle is then compared on the reference's own inputs, so that errors do not compound from one
component to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from qwen_image_engine.engines.core.contract import Contract
from qwen_image_engine.engines.core.engine import Array, Engine
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.pipeline import engine_loader, pipeline_on, schedule_config
from qwen_image_engine.runtime.component_pool import ComponentPool, Memory
from qwen_image_engine.runtime.sampling.schedule import sigmas

T = TypeVar("T")

STEPS = 8
"""Steps of a recorded trajectory if the checkpoint fixes none: from pure noise to the last, most detailed level."""

LONG_PROMPT_TOKENS = 600

REFERENCE_RESOLUTION = 288
"""Resolution that reference images are fitted to.

The released processor leaves such reference images as they are, whatever the aspect ratio.
"""


@dataclass(frozen=True)
class Case:
    """A request to draw. Sizes are in pixels; reference images are fitted to `reference_resolution`."""

    name: str
    prompt: str
    width: int
    height: int
    seed: int = 7
    references: tuple[Image.Image, ...] = ()
    reference_resolution: int = REFERENCE_RESOLUTION


@dataclass(frozen=True, eq=False)
class Call:
    """The inputs and outputs of one run of a component."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


@dataclass(frozen=True, eq=False)
class TeacherStep:
    """A step of the reference: the latents that it was given, their sigma, and the velocity that it computed."""

    latents: NDArray[np.float32]
    sigma: float
    velocity: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Recording:
    """A case as the reference ran it: calls by component, trajectory, final latents, and picture.

    The picture is (height, width, 4) uint8.
    """

    case: Case
    calls: Mapping[str, list[Call]]
    steps: list[TeacherStep]
    final: NDArray[np.float32]
    picture: NDArray[np.uint8] | None = None

    @property
    def sigmas(self) -> tuple[float, ...]:
        """Sigma of the latents that each step was given."""
        return tuple(step.sigma for step in self.steps)


def ends(items: Sequence[T]) -> tuple[T, ...]:
    """Return the first and the last of a component's calls, or of its steps.

    The first step is pure noise, the last is the most detailed level.
    """
    return (items[0], items[-1]) if len(items) > 1 else tuple(items)


def default_cases(tokenizer: Tokenizer, *, references: bool = True) -> tuple[Case, ...]:
    """Return cases with three prompt lengths, two scripts and three sizes.

    The sizes are small, but the cases hold every operation that large ones do. With `references` there is one more
    case, with two reference images, one of them partly transparent.
    """
    sentence = "a red circle on the left, a blue square in the center and a green triangle at the top right, "
    count = 1
    while len(tokenizer.encode(sentence * count).ids) < LONG_PROMPT_TOKENS:
        count += 1
    return (
        Case("english", "a red circle in the center on a white background", 256, 256),
        Case("chinese", "左边有一个蓝色的正方形，右边有一个绿色的三角形，透明背景", 192, 128),
        Case("long", sentence * count, 128, 224),
        *([edit_case()] if references else []),
    )


def edit_case() -> Case:
    """Return an edit of two reference images that any checkpoint can do, one of them partly transparent."""
    return Case(
        "edit",
        "make the circle blue and put it where the square is in the second picture",
        128,
        160,
        references=(_drawn(400, 300, 7), _drawn(200, 260, 8).convert("RGB")),
    )


def _drawn(width: int, height: int, seed: int) -> Image.Image:
    """Draw soft patches of any colour and opacity, RGBA."""
    patches = np.random.default_rng(seed).integers(0, 256, (6, 8, 4)).astype(np.uint8)
    return Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC)


def record(checkpoint: Checkpoint, cases: Sequence[Case], memory: Memory = "resident") -> list[Recording]:
    """Run the cases through the reference, and return their recordings.

    Raises:
        QwenImageError: the checkpoint's tensors do not match the networks.
    """
    calls: dict[str, list[Call]] = {}
    components = ComponentPool(_recorded(engine_loader(checkpoint), calls), memory)
    schedule = schedule_config(checkpoint)
    recordings = []
    with pipeline_on(checkpoint, components) as pipeline:
        for case in cases:
            calls.clear()
            steps = None if schedule.sample_sigmas else STEPS
            final = None
            images = pipeline.read_references(case.references, case.reference_resolution)
            conditioning = pipeline.encode(case.prompt, images)
            for step in pipeline.sample(
                conditioning, width=case.width, height=case.height, steps=steps, seed=case.seed
            ):
                final = step.latents
            assert final is not None
            (picture,) = pipeline.decode(final, case.width, case.height)
            if not images.images:
                components.run("vae_encoder", {"image": calls["vae_decoder_up"][0].outputs["image"]})
            levels = sigmas(schedule, steps, final.shape[1])
            trajectory = [
                TeacherStep(latents, float(sigma), call.outputs["velocity"][:, -final.shape[1] :])
                for call, sigma in zip(calls[pipeline.facts.step], levels, strict=False)
                for latents in [call.inputs["latents"][:, -final.shape[1] :]]
            ]
            recordings.append(Recording(case, dict(calls), trajectory, final, picture))
    return recordings


class _RecordingEngine:
    """An engine that records the inputs and outputs of each run."""

    def __init__(self, engine: Engine, calls: dict[str, list[Call]]) -> None:
        self._engine = engine
        self._calls = calls

    @property
    def contract(self) -> Contract:
        return self._engine.contract

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        outputs = self._engine.run(inputs)
        self._calls.setdefault(self.contract.component, []).append(Call(dict(inputs), dict(outputs)))
        return outputs

    def close(self) -> None:
        self._engine.close()


def _recorded(load: Callable[[str], Engine], calls: dict[str, list[Call]]) -> Callable[[str], Engine]:
    return lambda component: _RecordingEngine(load(component), calls)
