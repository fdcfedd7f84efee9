"""The request for a calibration, checked before any network is loaded."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import torch
from tokenizers import Tokenizer

from qwen_image_engine.calibration.observe.settings import CheckpointIdentity, Settings
from qwen_image_engine.engines.core.dtypes import PRECISIONS
from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.pipeline import model_facts, schedule_config
from qwen_image_engine.runtime.denoiser import check_guidance
from qwen_image_engine.runtime.images.read import ReferenceSource
from qwen_image_engine.runtime.images.reference_image import ReferenceImage, ReferenceImages
from qwen_image_engine.runtime.model.size import DEFAULT_RESOLUTION
from qwen_image_engine.runtime.sampling.inputs import SamplingInputs
from qwen_image_engine.runtime.sampling.schedule import ScheduleConfig
from qwen_image_engine.runtime.text.prompt import tokenize
from qwen_image_engine.runtime.text.tokenizer import load_tokenizer

DEFAULT_SIZES = ((1024, 1024), (1344, 768), (768, 1344))
"""Usual picture sizes of the released model. A step's inputs and its sigma depend on the number of tokens."""

DEFAULT_GUIDANCE = 3.0
"""Default guidance scale. A checkpoint with fixed sigmas is distilled for no guidance, and has 1 instead."""

DTYPES: Mapping[str, torch.dtype] = {name: getattr(torch, row.name) for name, row in PRECISIONS.items()}
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True, eq=False)
class Request:
    """A calibration request whose arguments have been checked.

    Attributes:
        checkpoint: checkpoint to observe.
        tokenizer: tokenizer of the checkpoint.
        schedule: schedule of the checkpoint.
        prompts: prompts, one trajectory each.
        images: reference images of every second prompt, from the first on, in turn.
        negative_prompt: prompt of the second branch; None if there is no guidance.
        guidance: guidance scale; 1 for no guidance.
        sizes: (width, height) in pixels, used in turn.
        steps: steps of each trajectory.
        seed: seed of the first trajectory's noise; each later trajectory adds 1.
        device: one of `DEVICES`.
        dtype: one of `DTYPES`.
    """

    checkpoint: Checkpoint
    tokenizer: Tokenizer
    schedule: ScheduleConfig
    prompts: tuple[str, ...]
    images: tuple[ReferenceImage, ...]
    negative_prompt: str | None
    guidance: float
    sizes: tuple[tuple[int, int], ...]
    steps: int
    seed: int
    device: str
    dtype: str

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        prompts: Sequence[str],
        *,
        images: Sequence[ReferenceSource] = (),
        reference_resolution: int = DEFAULT_RESOLUTION,
        steps: int | None,
        sizes: Sequence[tuple[int, int]],
        guidance: float | None,
        negative_prompt: str,
        seed: int,
        device: str,
        dtype: str,
    ) -> Request:
        """Check the arguments of `calibrate`.

        Raises:
            UsageError: an argument is not valid, or the device is not available here.
            QwenImageError: the checkpoint's tokenizer or schedule is invalid.
        """
        _check_device(device, dtype)
        if isinstance(prompts, str):  # whose letters would each be a prompt
            raise UsageError("the prompts are one text, expected a list of them")
        if not prompts:
            raise UsageError("there are no prompts to calibrate on, expected at least one")
        if not sizes:
            raise UsageError("there are no sizes to calibrate on, expected at least one")
        schedule, tokenizer = schedule_config(checkpoint), load_tokenizer(checkpoint.folder)
        if guidance is None:
            guidance = DEFAULT_GUIDANCE if schedule.sample_sigmas is None else 1.0
        check_guidance(guidance, guidance > 1 or negative_prompt != "")
        for number, prompt in enumerate(prompts, 1):
            try:
                tokenize(tokenizer, prompt)
            except UsageError as error:
                raise UsageError(f"prompt {number} of {len(prompts)}: {error}") from error
        tokenize(tokenizer, negative_prompt)
        _check_images(images, len(prompts))
        vision = model_facts(checkpoint).vision
        read = [
            image for source in images for image in ReferenceImages.read([source], reference_resolution, vision).images
        ]
        channels = checkpoint.transformer.in_channels
        starts = [
            SamplingInputs.prepare(schedule, channels, width, height, steps, seed, 1, None) for width, height in sizes
        ]
        SamplingInputs.prepare(schedule, channels, *sizes[0], steps, seed + len(prompts) - 1, 1, None)  # the last seed
        return cls(
            checkpoint=checkpoint,
            tokenizer=tokenizer,
            schedule=schedule,
            prompts=tuple(prompts),
            images=tuple(read),
            negative_prompt=negative_prompt if guidance > 1 else None,
            guidance=float(guidance),
            sizes=tuple((width, height) for width, height in sizes),
            steps=starts[0].steps,
            seed=seed,
            device=device,
            dtype=dtype,
        )

    def references(self, index: int) -> ReferenceImages:
        """Return the reference image of prompt `index`; prompts with an odd index have none."""
        if index % 2 or not self.images:
            return ReferenceImages()
        return ReferenceImages((self.images[index // 2 % len(self.images)],))

    def settings(self, hashed: Callable[[int], None] | None = None) -> Settings:
        """Return all settings that decide the result.

        The checkpoint's weights are read and hashed. `hashed` is called with the bytes of each block.
        """
        checkpoint = self.checkpoint
        return Settings(
            checkpoint=CheckpointIdentity(
                checkpoint.name, checkpoint.config_sha256(), checkpoint.weights_sha256(hashed)
            ),
            prompts=len(self.prompts),
            prompts_sha256=prompts_sha256(self.prompts),
            images=len(self.images),
            images_sha256=images_sha256(self.images),
            negative_prompt=self.negative_prompt,
            guidance=self.guidance,
            seeds=tuple(range(self.seed, self.seed + len(self.prompts))),
            steps=self.steps,
            sizes=self.sizes,
            dtype=self.dtype,
            device=self.device,
            versions=versions(),
        )


def versions() -> Mapping[str, str]:
    """Return the versions of the packages that compute here, by package."""
    return {
        "qwen-image-engine": version("qwen-image-engine"),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def prompts_sha256(prompts: Sequence[str]) -> str:
    """Return the SHA-256 of the prompts in order, as UTF-8, each followed by a newline."""
    return hashlib.sha256("".join(f"{prompt}\n" for prompt in prompts).encode()).hexdigest()


def images_sha256(images: Sequence[ReferenceImage]) -> str:
    """Return the SHA-256 of the hashes of the images' pixels in order, each followed by a newline.

    The result is "" if there are no images.
    """
    return hashlib.sha256("".join(f"{image.sha256}\n" for image in images).encode()).hexdigest() if images else ""


def _check_images(images: Sequence[ReferenceSource], prompts: int) -> None:
    if isinstance(images, ReferenceSource):
        raise UsageError(f"the reference images are one {type(images).__name__}, expected a list of them")
    drawn = (prompts + 1) // 2
    if len(images) > drawn:
        raise UsageError(
            f"{len(images)} reference images and {prompts} prompts, of which every second is drawn with one: "
            f"{len(images) - drawn} would never be seen; give more prompts, or fewer images"
        )


def _check_device(device: str, dtype: str) -> None:
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r}: expected {', '.join(DTYPES)}")
    if device not in DEVICES:
        raise UsageError(f"device {device!r}: expected {' or '.join(DEVICES)}")
    if device == "cuda" and not torch.cuda.is_available():
        why = "is a build without CUDA" if torch.version.cuda is None else "finds no CUDA device on this machine"
        raise UsageError(f"device cuda: torch {torch.__version__} {why}; ask for --device cpu")
