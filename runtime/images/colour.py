"""The conversion of a picture's colours from an embedded colour profile to sRGB, as a viewer shows them."""

import io
from typing import Any

import numpy as np
from PIL import Image

from qwen_image_engine.engines.core.errors import QwenImageError

_GREYS = ("1", "L", "LA", "I;16", "I;16B", "I;16L", "I;16N")


class ProfileError(QwenImageError):
    """The error that a colour profile is damaged or is not one of the picture's colours."""


def to_srgb(rgba: Image.Image, source: Image.Image, profile: bytes) -> Image.Image:
    """Return a picture with its colours converted to sRGB, by the profile's perceptual intent. Alpha stays.

    Colours of a profile that moves none of them by more than a rounding are returned as they are.

    Args:
        rgba: the picture in mode RGBA, its colours not converted.
        source: the picture as it was read, of the same size: RGB, grey, CMYK or with a palette.
        profile: the ICC profile.

    Raises:
        ProfileError: the profile is damaged or is not one of the picture's colours, or this Pillow has no LittleCMS.
    """
    from PIL import ImageCms  # a millisecond, and another library: most pictures have no profile

    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        colours = _in_space(opened.profile.xcolor_space.strip(), rgba, source)
        transform = ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), colours.mode, "RGB")
        if colours.mode == "RGB" and _changes_nothing(transform):
            return rgba
        converted = transform.apply(colours)
    except (ImageCms.PyCMSError, ImportError, OSError, ValueError, TypeError) as error:
        raise ProfileError(str(error)) from error
    converted.putalpha(rgba.getchannel("A"))
    return converted


def _in_space(space: str, rgba: Image.Image, source: Image.Image) -> Image.Image:
    """Return the picture's colours in the colour space of a profile.

    Raises:
        ProfileError: the picture has other colours.
    """
    if space == "CMYK" and source.mode == "CMYK":
        return source
    if space == "RGB" and source.mode != "CMYK":
        return rgba.convert("RGB")
    if space == "GRAY" and source.mode in _GREYS:
        return rgba.getchannel("R")
    raise ProfileError(f"it is for {space}, and the picture is {source.mode}")


def _changes_nothing(transform: Any) -> bool:
    """Return whether a transform from RGB moves no colour of a grid of 17 by 17 by 17 by more than 1."""
    levels = np.linspace(0, 255, 17).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(17, 17 * 17, 3)
    moved = np.asarray(transform.apply(Image.fromarray(grid))).astype(np.int16) - grid
    return bool(np.abs(moved).max() <= 1)
