"""A generated picture with all parameters that determine it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qwen_image_engine.runtime.images.metadata import text_chunks
from qwen_image_engine.runtime.images.parameters import PictureParameters
from qwen_image_engine.runtime.images.png import check_png_name, save_png


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

        `PictureParameters.read` reads them back. A pipe or a device may have any name.

        Raises:
            UsageError: the name does not end in .png.
            QwenImageError: the file cannot be written.
        """
        check_png_name(Path(path))
        save_png(Path(path), self.rgba, text_chunks(self.parameters))
