"""The Euler sampler of flow matching, as a generator: progress, preview, cancel and timing are the caller's loop."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from qwen_image_engine.engines.core.errors import QwenImageError

Velocity = Callable[[NDArray[np.float32], float], NDArray[np.float32]]
"""The network: (latents (batch, tokens, channels), sigma) -> velocity of the same shape."""


@dataclass(frozen=True, eq=False)
class Step:
    """One step taken.

    Attributes:
        index: 0 for the first step.
        sigma: the noise level of `latents`; 0 after the last step.
        latents: (batch, tokens, channels), after the step.
    """

    index: int
    sigma: float
    latents: NDArray[np.float32]


def euler(velocity: Velocity, latents: NDArray[np.float32], sigmas: NDArray[np.float32]) -> Iterator[Step]:
    """Integrate dx/dsigma = velocity from sigmas[0] to sigmas[-1].

    Args:
        velocity: the network.
        latents: (batch, tokens, channels) at sigmas[0]; not modified.
        sigmas: (N + 1,) float32, falling.

    Yields:
        N steps; step k after its update, with the latents at sigmas[k+1].

    Raises:
        QwenImageError: the velocity is not finite or of another shape than the latents.
    """
    for index, (sigma, following) in enumerate(pairwise(sigmas)):
        slope = velocity(latents, float(sigma))
        if slope.shape != latents.shape:
            raise QwenImageError(f"velocity has shape {slope.shape}, expected that of the latents, {latents.shape}")
        if not np.isfinite(slope).all():
            raise not_finite(index, sigmas)
        latents = latents + (following - sigma) * slope
        yield Step(index, float(following), latents)


def not_finite(index: int, sigmas: NDArray[np.float32]) -> QwenImageError:
    """The error of step `index` of a grid (N + 1,) whose velocity holds an infinity or no number."""
    return QwenImageError(
        f"step {index + 1} of {len(sigmas) - 1} (sigma {sigmas[index]:.4f}): the velocity is not finite; "
        "run the transformer in bf16 or fp32"
    )


def guide(positive: NDArray[np.float32], negative: NDArray[np.float32], guidance: float) -> NDArray[np.float32]:
    """Combine the velocities of prompt and negative prompt: negative + guidance * (positive - negative)."""
    return negative + np.float32(guidance) * (positive - negative)
