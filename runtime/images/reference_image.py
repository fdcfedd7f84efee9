"""A reference image as a request holds it: fitted pixels under the hash that its latents and states are kept by."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.runtime.images.pixels import fit_reference, reference_hash
from qwen_image_engine.runtime.images.read import ReferenceSource, check_references, read_reference, reference_name
from qwen_image_engine.runtime.model.facts import VisionFacts
from qwen_image_engine.runtime.model.sequence import ImageBlock
from qwen_image_engine.runtime.model.size import DEFAULT_RESOLUTION, PIXELS_PER_LATENT


@dataclass(frozen=True, eq=False)
class ReferenceImage:
    """One image, fitted.

    Attributes:
        rgba: (height, width, 4) uint8, sides multiples of 32.
        sha256: of size and pixels.
    """

    rgba: NDArray[np.uint8]
    sha256: str

    @property
    def block(self) -> ImageBlock:
        """Its latents in the sequence."""
        height, width = (side // PIXELS_PER_LATENT for side in self.rgba.shape[:2])
        return ImageBlock(height, width)


@dataclass(frozen=True, eq=False)
class ReferenceImages:
    """Those of a request, in order, and (width, height) of a picture for which none is asked: the last's.

    Without any that is a square of `DEFAULT_RESOLUTION`.
    """

    images: tuple[ReferenceImage, ...] = ()
    size: tuple[int, int] = (DEFAULT_RESOLUTION, DEFAULT_RESOLUTION)

    @classmethod
    def read(
        cls, sources: Sequence[ReferenceSource], resolution: int, facts: VisionFacts, absent: Collection[str] = ()
    ) -> "ReferenceImages":
        """Read and fit them, every one before any network runs.

        Args:
            sources: files or Pillow images.
            resolution: side of a square of the area that each is fitted to, in pixels.
            facts: of the vision tower.
            absent: components that would have to read them and that the bundle has not.

        Raises:
            UsageError: there are too many, one cannot be read or fitted (see `read_reference`, `reference_size`), or
                there are some and a component is absent.
        """
        check_references(sources)
        if not sources:
            return cls()
        if absent:
            raise UsageError(
                f"there are reference images, and the bundle has no {' and no '.join(absent)}; export it again, "
                "without the flag --without"
            )
        images = tuple(cls._fitted(source, resolution, facts) for source in sources)
        height, width = images[-1].rgba.shape[:2]
        return cls(images, (width, height))

    def picture_size(self, width: int | None, height: int | None) -> tuple[int, int]:
        """(width, height) as asked for, `size` where they are not."""
        return self.size[0] if width is None else width, self.size[1] if height is None else height

    @staticmethod
    def _fitted(source: ReferenceSource, resolution: int, facts: VisionFacts) -> ReferenceImage:
        """One at a time: the largest take half a gigabyte before they are fitted."""
        rgba = fit_reference(
            read_reference(source),
            resolution,
            name=reference_name(source),
            min_pixels=facts.min_pixels,
            max_pixels=facts.max_pixels,
        )
        return ReferenceImage(rgba, reference_hash(rgba))
