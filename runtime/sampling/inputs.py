"""Where sampling starts: the size, the noise levels and the noise, all checked before any network runs."""

from dataclasses import dataclass
from numbers import Integral
from typing import Self

import numpy as np
from numpy.typing import NDArray

from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.runtime.model.latents import pack_latents
from qwen_image_engine.runtime.model.size import MAX_IMAGES, latent_size
from qwen_image_engine.runtime.sampling.noise import draw_noise
from qwen_image_engine.runtime.sampling.schedule import ScheduleConfig, sigmas


@dataclass(frozen=True, eq=False)
class Start:
    """Size, noise levels and initial latents of a run.

    Attributes:
        rows: of latents, height / 16.
        columns: of latents, width / 16.
        sigmas: (N + 1,) float32, falling to 0.
        latents: (batch, rows * columns, channels) float32 at sigmas[0].
    """

    rows: int
    columns: int
    sigmas: NDArray[np.float32]
    latents: NDArray[np.float32]

    @property
    def steps(self) -> int:
        """Steps of the sampler."""
        return len(self.sigmas) - 1

    @classmethod
    def of(
        cls,
        schedule: ScheduleConfig,
        channels: int,
        width: int,
        height: int,
        steps: int | None,
        seed: int,
        num_images: int,
        latents: NDArray[np.float32] | None,
    ) -> Self:
        """Check a request and draw its noise; without `latents`, all images' at once from `seed`, as diffusers does.

        Raises:
            UsageError: size, steps, seed, number of images or the given latents are not ones that can be drawn.
        """
        for name, value in (("steps", 0 if steps is None else steps), ("seed", seed), ("num_images", num_images)):
            if not isinstance(value, Integral):
                raise UsageError(f"{name} is {value!r}, expected a whole number")
        if latents is not None and not isinstance(latents, np.ndarray):
            raise UsageError(f"the given latents are {type(latents).__name__}, expected a numpy array")
        rows, columns = latent_size(width, height)
        levels = sigmas(schedule, steps, rows * columns)
        if not 1 <= num_images <= MAX_IMAGES:
            raise UsageError(f"{num_images} images asked for, expected 1 to {MAX_IMAGES}")
        if latents is None:
            noise = pack_latents(draw_noise((num_images, 1, channels, rows, columns), seed))
            return cls(rows, columns, levels, noise)
        expected = (num_images, rows * columns, channels)
        if latents.dtype != np.float32 or latents.shape != expected:
            raise UsageError(
                f"the given latents are {latents.dtype} {latents.shape}, expected float32 {expected}: "
                f"{num_images} of {width}x{height}, (batch, tokens, channels)"
            )
        if not np.isfinite(latents).all():
            raise UsageError("the given latents hold values that are not finite")
        return cls(rows, columns, levels, np.ascontiguousarray(latents))
