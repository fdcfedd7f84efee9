"""A checked request for pictures, which a queue may hold. After the check, only a lack of memory can refuse it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self, TypedDict

import numpy as np
from numpy.typing import NDArray

from qwen_image_engine.runtime.images.mask import Mask, MaskSource
from qwen_image_engine.runtime.images.read import ReferenceSource
from qwen_image_engine.runtime.images.reference_image import ReferenceImages
from qwen_image_engine.runtime.sampling.inputs import SamplingInputs
from qwen_image_engine.runtime.sampling.spacing import Spacing
from qwen_image_engine.runtime.system.cancellation import Cancellation


class RequestOptions(TypedDict, total=False):
    """Options of a request besides the prompt. All are optional and described at `QwenImage.prepare`."""

    negative_prompt: str | None
    references: Sequence[ReferenceSource] | ReferenceImages
    reference_resolution: int
    first_frame: bool
    mask: MaskSource | None
    guidance: float
    width: int | None
    height: int | None
    steps: int | None
    solver: str
    sigmas: Spacing
    seed: int
    num_images: int
    latents: NDArray[np.float32] | None


@dataclass(frozen=True, eq=False)
class Request:
    """A valid request, made by `QwenImage.prepare`.

    Attributes:
        prompt: the prompt, as given.
        negative_prompt: the negative prompt; None without guidance.
        references: reference images, read and fitted.
        mask: mask of the first reference image, at the picture's size; None without a mask.
        guidance: guidance weight; 1 without guidance.
        width: width of the picture [pixels].
        height: height of the picture [pixels].
        inputs: size of the latents, noise levels, solver, seed, number of pictures.
        prefix_tokens: number of prefix tokens that the target attends to.
        cache_bytes: bytes of the keys and values of all prompts and of a batch's copies; 0 if the model's attention
            is bidirectional.
        cancellation: cancellation token of the request.
    """

    prompt: str
    negative_prompt: str | None
    references: ReferenceImages
    mask: Mask | None
    guidance: float
    width: int
    height: int
    inputs: SamplingInputs
    prefix_tokens: int
    cache_bytes: int
    cancellation: Cancellation = field(default_factory=Cancellation, repr=False)

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompt, and with guidance the negative prompt after it."""
        return (self.prompt,) if self.negative_prompt is None else (self.prompt, self.negative_prompt)

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self.cancellation.cancelled

    def cancel(self) -> None:
        """Cancel the run within one step, or within a long stage if the engine supports it.

        Any thread may call this, also before the run starts. `generate` then raises `Cancelled`. A request stays
        cancelled.
        """
        self.cancellation.cancel()

    def with_seed(self, seed: int) -> Self:
        """Return the same request with another seed and a cancellation token of its own.

        Raises:
            UsageError: the seed is not a whole number or is out of range, or the initial latents were given.
        """
        return replace(self, inputs=self.inputs.with_seed(seed), cancellation=Cancellation())
