"""Sampling inside a mask: the latents outside of it are known at every noise level, and set after every step.

The formula is that of diffusers' inpainting pipelines for flow matching, such as `QwenImageInpaintPipeline`: after a
step they set the latents outside to `scheduler.scale_noise(image_latents, t, noise)` at the next noise level.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Inpainting:
    """The latents of a run outside of a mask.

    Attributes:
        open: (tokens,) whether a latent is drawn; the others are known.
        base: (1, tokens, channels) float32, latents of the picture that stays outside.
        noise: (batch, tokens, channels) float32, the run's own initial noise.
    """

    open: NDArray[np.bool_]
    base: NDArray[np.float32]
    noise: NDArray[np.float32]

    def blended(self, latents: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
        """Return latents (batch, tokens, channels) with the known ones set: sigma * noise + (1 - sigma) * base.

        The sum is in float32, as `FlowMatchEulerDiscreteScheduler.scale_noise` computes it, bit for bit.
        """
        level, closed, found = np.float32(sigma), ~self.open, latents.copy()
        found[:, closed] = level * self.noise[:, closed] + (np.float32(1) - level) * self.base[:, closed]
        return found

    def velocity(self, found: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a network's velocity, and outside the known one, noise - base, which points at the base."""
        return np.where(self.open[:, None], found, self.noise - self.base)
