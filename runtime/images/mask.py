"""The mask of a request: the parts of the first reference image that are edited, and its pixels everywhere else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.runtime.images.pixels import reference_hash
from qwen_image_engine.runtime.images.read import ReferenceSource, file_name, mask_name, read_mask
from qwen_image_engine.runtime.images.reference_image import ReferenceImage, ReferenceImages
from qwen_image_engine.runtime.model.size import PIXELS_PER_LATENT, other_side

MaskSource = ReferenceSource
"""A mask as a caller gives it: a file's path, or a Pillow image. `Image.open` takes bytes in an `io.BytesIO`."""

_OPAQUE = 255


@dataclass(frozen=True, eq=False)
class Mask:
    """A mask at the picture's size, with the base: the first reference image at that size.

    Attributes:
        alpha: (height, width) uint8, the share of the base in a pixel: 0 is drawn, 255 stays, and between them both
            are mixed.
        base: the first reference image, resized to the picture's size.
        sha256: SHA-256 of the mask's own size and alpha, before it was resized.
        name: name of the mask's file, without its folder; None for an image from memory.
    """

    alpha: NDArray[np.uint8]
    base: ReferenceImage
    sha256: str
    name: str | None

    @classmethod
    def read(cls, source: MaskSource, references: ReferenceImages, width: int, height: int) -> Self:
        """Read a mask, and resize mask and first reference image to a picture's size.

        The image is resized as reference images are, by a Lanczos filter over premultiplied colours. The mask is
        resized by a linear filter, which does not ring: away from its edges 0 and 255 stay what they are.

        Args:
            source: the mask, of the size that the first reference image has in its file.
            references: reference images that were read for a mask.
            width: width of the picture [pixels], a multiple of 32.
            height: height of the picture [pixels], a multiple of 32.

        Raises:
            UsageError: there is no reference image or they were not read for a mask, the mask cannot be read or has no
                alpha channel, several frames or another size, the picture has another aspect ratio than the first
                reference image, or the mask opens no pixel.
        """
        name = mask_name(source)
        if not references.images:
            raise UsageError(
                f"{name} is without a reference image, whose parts it opens; name one with -r (references)"
            )
        if references.first is None:
            raise UsageError(
                f"{name} needs the first reference image's own pixels, which were not kept; give the images "
                "themselves, or read them with read_references(..., for_mask=True)"
            )
        _check_picture_size(references, width, height)
        alpha = read_mask(source)
        if alpha.size != references.first.size:
            across, down = references.first.size
            raise UsageError(
                f"{name} is {alpha.width}x{alpha.height} pixels, expected the size of the first reference image, "
                f"{across}x{down}; resize it"
            )
        fitted = np.array(alpha.resize((width, height), Image.Resampling.BILINEAR))
        if fitted.min() == _OPAQUE:
            raise UsageError(
                f"{name} is opaque in every pixel at {width}x{height}, so nothing would be edited; make it transparent "
                "(alpha 0) where the picture is to change"
            )
        rgba = np.array(references.first.resize((width, height), Image.Resampling.LANCZOS))
        base = ReferenceImage(rgba, reference_hash(rgba), references.images[0].name)
        return cls(fitted, base, reference_hash(np.array(alpha)), file_name(source))

    @property
    def open_latents(self) -> NDArray[np.bool_]:
        """Whether each latent is drawn, (rows * columns,): if any of its 16x16 pixels is not opaque."""
        height, width = self.alpha.shape
        cells = self.alpha.reshape(height // PIXELS_PER_LATENT, PIXELS_PER_LATENT, width // PIXELS_PER_LATENT, -1)
        return np.asarray((cells < _OPAQUE).any(axis=(1, 3)).reshape(-1))

    def keep_base(self, drawn: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return drawn pictures (batch, height, width, 4) with the base's pixels where the mask is opaque, bit for bit.

        Where the mask is partly transparent, both are mixed by its alpha: their opacities, and their colours weighted
        by opacity, so that no colour of a transparent pixel shows.
        """
        pictures = np.where((self.alpha == _OPAQUE)[..., None], self.base.rgba, drawn)
        soft = (self.alpha > 0) & (self.alpha < _OPAQUE)
        if soft.any():
            pictures[:, soft] = _mixed(self.base.rgba[soft], drawn[:, soft], self.alpha[soft])
        return pictures


def _check_picture_size(references: ReferenceImages, width: int, height: int) -> None:
    """Raise if a picture has another aspect ratio than the first image, as far as multiples of 32 allow it.

    Raises:
        UsageError: neither side is the valid one nearest to the other's proportion, and the size is not the default.
    """
    assert references.first is not None
    across, down = references.first.size
    tall, wide = other_side(width, across, down), other_side(height, down, across)
    if (width, height) != references.size and height != tall and width != wide:
        found = (
            f"a mask at size {width}x{height}: the picture keeps the aspect ratio of the first reference image, "
            f"{across}x{down}"
        )
        sizes = f"{width}x{tall} or {wide}x{height}"
        raise UsageError(
            f"{found}; leave one side out, or take {sizes}", for_client=f"{found}; ask for 'size' auto, or for {sizes}"
        )


def _mixed(base: NDArray[np.uint8], drawn: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Mix pixels (n, 4) of the base and (batch, n, 4) drawn ones, with the base's share alpha / 255 of each pixel."""
    share = alpha[:, None] / 255
    of_base, of_drawn = share * base[:, 3:], (1 - share) * drawn[..., 3:]
    opacity = of_base + of_drawn
    colours = of_base * base[:, :3] + of_drawn * drawn[..., :3]
    colours /= np.where(opacity > 0, opacity, 1)  # colours of invisible pixels become 0
    return np.rint(np.concatenate([colours, opacity], axis=-1)).astype(np.uint8)
