"""The step of a sampling run, in the caller's view."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qwen_image_engine.engines.core.errors import UsageError

Read = Callable[[], tuple[NDArray[np.float32], NDArray[np.float32]]]
Decode = Callable[[NDArray[np.float32], float], NDArray[np.uint8]]


@dataclass(frozen=True, eq=False)
class Step:
    """A step of a sampling run that has been taken.

    If the engine takes the steps on a GPU, latents are read back only on request. The request must come before the next
    step, except after the last one.

    Attributes:
        index: index of the step, 0 for the first.
        steps: number of all steps.
        sigma: noise level after the step; 0 after the last.
        seconds: duration of the step [s].
    """

    index: int
    steps: int
    sigma: float
    seconds: float
    _read: Read = field(repr=False)
    _decode: Decode | None = field(default=None, repr=False)

    @property
    def latents(self) -> NDArray[np.float32]:
        """Latents (batch, tokens, channels) after the step.

        Raises:
            QwenImageError: the device has taken another step meanwhile.
        """
        return self._read()[0]

    @property
    def predicted(self) -> NDArray[np.float32]:
        """Clean latents (batch, tokens, channels) predicted from the step's velocity: latents - sigma * velocity.

        Raises:
            QwenImageError: the device has taken another step meanwhile.
        """
        latents, velocity = self._read()
        return latents - np.float32(self.sigma) * velocity

    def preview(self, scale: float = 1 / 4) -> NDArray[np.uint8]:
        """Decode the predicted clean pictures, (batch, height * scale, width * scale, 4). Its timing is "preview".

        Args:
            scale: scale of the sides. 1/4 averages the decoded pixels, which a display or a network then takes faster.
                Decoding costs the same: fewer latents (averages, medians or every fourth) decode to other colours.

        Raises:
            UsageError: the scale is neither 1 nor 1/4, or the run has no decoder.
            QwenImageError: the decoder failed, or the device has taken another step meanwhile.
        """
        if scale not in (1, 1 / 4):
            raise UsageError(f"a preview at scale {scale}: expected 1 or 1/4")
        if self._decode is None:
            raise UsageError("this step is of a run without a decoder; decode its latents with QwenImage.decode")
        return self._decode(self.predicted, scale)
