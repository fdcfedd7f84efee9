"""The reference images of a request: fitted pixels, and a hash that is the cache key of their latents and states."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.runtime.images.pixels import fit_reference, reference_hash
from qwen_image_engine.runtime.images.read import (
    ReferenceSource,
    check_references,
    file_name,
    read_reference,
    reference_name,
)
from qwen_image_engine.runtime.model.facts import VisionFacts
from qwen_image_engine.runtime.model.sequence import ImageBlock
from qwen_image_engine.runtime.model.size import DEFAULT_RESOLUTION, PIXELS_PER_LATENT, other_side


@dataclass(frozen=True, eq=False)
class ReferenceImage:
    """A fitted reference image.

    Attributes:
        rgba: pixels (height, width, 4) uint8, with sides that are multiples of 32.
        sha256: SHA-256 of size and pixels.
        name: name of the file, without its folder; None for an image from memory.
    """

    rgba: NDArray[np.uint8]
    sha256: str
    name: str | None = None

    @property
    def block(self) -> ImageBlock:
        """Block of the image's latents in the token sequence."""
        height, width = (side // PIXELS_PER_LATENT for side in self.rgba.shape[:2])
        return ImageBlock(height, width)


@dataclass(frozen=True, eq=False)
class ReferenceImages:
    """The reference images of a request, in order, and the default size of a picture.

    Attributes:
        images: fitted reference images.
        size: default (width, height) of a picture [pixels]: the size of the last reference image, of the first one if
            they were read for a mask, or a square of `DEFAULT_RESOLUTION` without reference images.
        proportions: (width, height) of the same image before it was fitted [pixels]; None without reference images.
        resolution: side of a square of the area that each image was fitted to [pixels]; None without reference images.
        first: the first reference image before it was fitted, in mode RGBA; None unless they were read for a mask.
    """

    images: tuple[ReferenceImage, ...] = ()
    size: tuple[int, int] = (DEFAULT_RESOLUTION, DEFAULT_RESOLUTION)
    proportions: tuple[int, int] | None = None
    resolution: int | None = None
    first: Image.Image | None = None

    @classmethod
    def read(
        cls,
        sources: Sequence[ReferenceSource],
        resolution: int,
        facts: VisionFacts,
        absent: Collection[str] = (),
        first_frame: bool = False,
        for_mask: bool = False,
    ) -> "ReferenceImages":
        """Read and fit all reference images. No network runs.

        Args:
            sources: files or Pillow images.
            resolution: side of a square of the area that each image is fitted to [pixels].
            facts: facts of the vision tower.
            absent: names of components that reference images need and that the bundle does not have.
            first_frame: whether to take the first frame of an animation, which is refused otherwise.
            for_mask: whether a mask opens parts of the first image, whose own pixels are then kept and which decides
                the default size.

        Raises:
            UsageError: there are too many images, an image cannot be read or fitted, or there are images and a
                component is absent.
        """
        check_references(sources)
        if not sources:
            return cls()
        if absent:
            found = f"there are reference images, and the bundle has no {' and no '.join(absent)}"
            raise UsageError(
                f"{found}; export it again, without the flag --without", for_client=f"{found}; ask for another 'model'"
            )
        images: list[ReferenceImage] = []
        leading = 0 if for_mask else len(sources) - 1
        for index, source in enumerate(sources):
            fitted, image = cls._fitted(source, resolution, facts, first_frame)
            images.append(fitted)
            if index == leading:
                proportions, first = image.size, image if for_mask else None
            del image  # before the next one is read
        height, width = images[leading].rgba.shape[:2]
        return cls(tuple(images), (width, height), proportions, resolution, first)

    def picture_size(self, width: int | None, height: int | None) -> tuple[int, int]:
        """Return (width, height) of a picture, a multiple of 32 each.

        If one side is given and there are reference images, the other follows from the aspect ratio of `proportions`.
        Any other side that is None is taken from `size`.
        """
        if self.proportions is not None:
            across, down = self.proportions
            if width is None and height is not None:
                width = other_side(height, down, across)
            elif height is None and width is not None:
                height = other_side(width, across, down)
        return self.size[0] if width is None else width, self.size[1] if height is None else height

    @staticmethod
    def _fitted(
        source: ReferenceSource, resolution: int, facts: VisionFacts, first_frame: bool
    ) -> tuple[ReferenceImage, Image.Image]:
        """Read and fit one image, and return it before that too.

        The caller fits one at a time: the largest take half a gigabyte before fitting.
        """
        image = read_reference(source, first_frame=first_frame)
        rgba = fit_reference(
            image, resolution, name=reference_name(source), min_pixels=facts.min_pixels, max_pixels=facts.max_pixels
        )
        return ReferenceImage(rgba, reference_hash(rgba), file_name(source)), image
