"""A drawn picture with everything that decided it."""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qwen_image_engine.runtime.images.png import check_png_name, save_png


@dataclass(frozen=True)
class Origin:
    """Where a pipeline's networks come from: the backend, its networks' precision, the checkpoint's name."""

    engine: str
    precision: str
    checkpoint: str


@dataclass(frozen=True)
class PictureParameters:
    """What decided a picture; written into its PNG file, one text chunk each.

    Attributes:
        prompt: as given.
        negative_prompt: None without guidance.
        references: the SHA-256 of each reference image's fitted pixels, with spaces between; None without.
        guidance: 1 without guidance.
        seed: of the initial noise; None where the caller gave the noise itself.
        num_images: size of the batch, which the noise was drawn for at once.
        image: place of this picture in the batch, from 0.
        steps: of the sampler.
        width: pixels.
        height: pixels.
        engine: the backend that computed it.
        precision: of its networks.
        checkpoint: name of the checkpoint.
        version: of this package.
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
        """Every parameter that is not None as text, by name; numbers as Python reads them back."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: str(value) for name, value in values.items() if value is not None}


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture.

    Attributes:
        rgba: (height, width, 4) uint8, alpha not premultiplied.
        latents: (tokens, channels) float32, the final latents it was decoded from.
        parameters: what decided it.
    """

    rgba: NDArray[np.uint8]
    latents: NDArray[np.float32]
    parameters: PictureParameters

    def to_pil(self) -> Image.Image:
        """Give it as a Pillow image of mode RGBA."""
        return Image.fromarray(self.rgba, "RGBA")

    def save(self, path: str | Path) -> None:
        """Write a PNG that carries the parameters; the file appears whole or not at all.

        Raises:
            UsageError: the name does not end in .png.
            QwenImageError: the file cannot be written.
        """
        check_png_name(Path(path))
        save_png(Path(path), self.rgba, self.parameters.to_text())
