"""A generated picture with all parameters that determine it."""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qwen_image_engine.runtime.images.png import check_png_name, save_png


@dataclass(frozen=True)
class PictureOrigin:
    """The origin of a pipeline's networks: the backend, the precision and the checkpoint's name."""

    engine: str
    precision: str
    checkpoint: str


@dataclass(frozen=True)
class PictureParameters:
    """The parameters that determine a picture. The PNG file holds each of them in one text chunk.

    Attributes:
        prompt: the prompt, as given.
        negative_prompt: the negative prompt; None without guidance.
        references: the SHA-256 of each reference image's fitted pixels, with spaces between; None without reference
            images.
        guidance: guidance weight; 1 without guidance.
        seed: seed of the initial noise; None if the caller gave the noise itself.
        num_images: size of the batch, whose noise is drawn at once.
        image: index of this picture in the batch, from 0.
        steps: number of steps of the sampler.
        width: width of the picture [pixels].
        height: height of the picture [pixels].
        engine: name of the backend that generated the picture.
        precision: precision of the networks.
        checkpoint: name of the checkpoint.
        version: version of this package.
    """

    prompt: str
    negative_prompt: str | None
    references: str | None
    guidance: float
    seed: int | None
    num_images: int
    image: int
    steps: int
    width: int
    height: int
    engine: str
    precision: str
    checkpoint: str
    version: str

    def to_text(self) -> dict[str, str]:
        """Return every parameter that is not None as text, by name. Python reads the numbers back exactly."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: str(value) for name, value in values.items() if value is not None}


@dataclass(frozen=True, eq=False)
class Picture:
    """A drawn picture.

    Attributes:
        rgba: pixels (height, width, 4) uint8, alpha not premultiplied.
        latents: the final latents from which the picture was decoded, (tokens, channels) float32.
        parameters: parameters that determine the picture.
    """

    rgba: NDArray[np.uint8]
    latents: NDArray[np.float32]
    parameters: PictureParameters

    def to_pil(self) -> Image.Image:
        """Return the picture as a Pillow image of mode RGBA."""
        return Image.fromarray(self.rgba, "RGBA")

    def save(self, path: str | Path) -> None:
        """Write a PNG file that contains the parameters. The file appears whole or not at all.

        Raises:
            UsageError: the name does not end in .png.
            QwenImageError: the file cannot be written.
        """
        check_png_name(Path(path))
        save_png(Path(path), self.rgba, self.parameters.to_text())
