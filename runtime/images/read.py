"""The reader of reference images and masks: checks size and mode of a file before decoding, and turns it upright."""

import struct
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.engines.core.files import open_regular
from qwen_image_engine.runtime.images.colour import ProfileError, to_srgb
from qwen_image_engine.runtime.model.size import MAX_REFERENCES, SIDE_MULTIPLE

MAX_SIDE = 16_384

MAX_PIXELS = 2**27
"""Most pixels of a reference image: 134 million, 512 MiB as RGBA. A 108-megapixel photograph is accepted, a picture of
16,384 squared is not."""

MAX_ASPECT_RATIO = 200
"""Largest aspect ratio. transformers' `smart_resize`, in front of the vision tower, refuses a longer picture."""

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "TIFF", "GIF")
"""Formats that Pillow decodes inside this process. Pillow gives others (EPS) to external programs."""

MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "I;16", "I;16B", "I;16L", "I;16N"}
"""Pillow's modes that mean a single RGBA picture. The range of I and F is the writer's choice."""

_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_AVIF = (b"avif", b"avis")  # brands: bytes 8 to 11 of a file in the ISO container

_BITS_PER_SAMPLE, _PHOTOMETRIC_INTERPRETATION = 258, 262  # tags of a TIFF

# What Pillow's decoders raise for a damaged file.
DAMAGE = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, struct.error)

ReferenceSource = str | Path | Image.Image

_Read = TypeVar("_Read")


def check_references(sources: Sequence[ReferenceSource]) -> None:
    """Raise if `sources` is not a list of at most `MAX_REFERENCES` reference images.

    Raises:
        UsageError: there are more than `MAX_REFERENCES`, or a single image is given instead of a list.
    """
    if isinstance(sources, ReferenceSource):
        raise UsageError(f"the references are one {type(sources).__name__}, expected a list of them")
    if len(sources) > MAX_REFERENCES:
        raise UsageError(f"{len(sources)} reference images, at most {MAX_REFERENCES} fit; leave some out")


def reference_name(source: ReferenceSource) -> str:
    """Return the name of a reference image in messages: the file if there is one."""
    return _name("reference image", source)


def mask_name(source: ReferenceSource) -> str:
    """Return the name of a mask in messages: the file if there is one."""
    return _name("mask", source)


def file_name(source: ReferenceSource) -> str | None:
    """Return the name of an image's file, without its folder; None for an image from memory."""
    file = getattr(source, "filename", None) if isinstance(source, Image.Image) else source
    return Path(file).name if file else None


def _name(kind: str, source: ReferenceSource) -> str:
    name = getattr(source, "filename", "") if isinstance(source, Image.Image) else source
    return f"{kind} {str(name) or '(from memory)'}"


def read_reference(source: ReferenceSource, *, first_frame: bool = False) -> Image.Image:
    """Read a reference image, upright as its EXIF orientation says (diffusers' `load_image`), in mode RGBA and sRGB.

    Size and mode are checked from the file's header, before the pixels are decoded. 16-bit grey is scaled to 8 bits;
    Pillow's own conversion would clip it. Colours are converted from an embedded ICC profile to sRGB; diffusers ignores
    profiles. A profile that cannot be applied is warned of, and the colours are taken for sRGB, as in viewers.

    Args:
        source: a file in one of `FORMATS`, or an image, which is not modified.
        first_frame: whether to take the first frame of an animation or the first page of a document, which are errors
            otherwise. An image from memory is taken at its current frame.

    Raises:
        UsageError: the source is neither a path nor an image, the file does not exist, cannot be opened, is no image or
            is damaged, or the image is animated, has an ambiguous mode, or has a side, an area or an aspect ratio
            outside the accepted range.
    """
    name = reference_name(source)
    rgba, fault = _read("reference image", source, partial(_to_rgba, first_frame=first_frame))
    if fault is not None:
        warnings.warn(f"{name}: its colour profile cannot be applied ({fault}); read as sRGB", stacklevel=2)
    return rgba


def read_mask(source: ReferenceSource) -> Image.Image:
    """Read the alpha channel of a mask, upright as its EXIF orientation says, in mode L. Colours do not count.

    Args:
        source: a file in one of `FORMATS`, such as a PNG or a WebP, or an image, which is not modified.

    Raises:
        UsageError: the mask has no alpha channel or more than one frame, or is refused for a fault that
            `read_reference` refuses too.
    """
    return _read("mask", source, _to_alpha)


def _read(kind: str, source: ReferenceSource, convert: Callable[[str, Image.Image], _Read]) -> _Read:
    """Open an image and return the result of `convert`, which gets its name in messages and the image.

    Raises:
        UsageError: the source is neither a path nor an image, the file does not exist, cannot be opened, is no image or
            is damaged, or `convert` refused the image.
    """
    if not isinstance(source, ReferenceSource):
        raise UsageError(f"a {kind} is {type(source).__name__}, expected a path or a PIL image")
    name = _name(kind, source)
    try:
        # Pillow warns of damaged metadata, and of sizes that are accepted or refused here.
        with warnings.catch_warnings(action="ignore"):
            if isinstance(source, Image.Image):
                return convert(name, source)
            # Pillow maps a TIFF that it opens by its path, with width and height exchanged if it lies on its side.
            with open_regular(_checked_path(name, source)) as file, Image.open(file, formats=FORMATS) as image:
                return convert(name, image)
    except UnidentifiedImageError as error:
        raise UsageError(f"{name} {_unidentified(source)}") from error
    except Image.DecompressionBombError as error:
        raise UsageError(f"{name} has more than the {MAX_PIXELS} pixels that are read; scale it down") from error
    except PermissionError as error:
        raise UsageError(f"{name} cannot be opened ({error.strerror}); check its permissions") from error
    except DAMAGE as error:
        raise UsageError(f"{name} cannot be read to its end ({error}); check the file or save it as PNG") from error


def _checked_path(name: str, source: str | Path) -> Path:
    path = Path(source)
    if not path.exists():
        raise UsageError(f"{name}: no such file; check the path")
    if not path.is_file():
        raise UsageError(f"{name} is a {'folder' if path.is_dir() else 'device or pipe'}, expected a file")
    return path


def _unidentified(source: ReferenceSource) -> str:
    """Return the fault of a file that Pillow does not identify."""
    start = b""
    if not isinstance(source, Image.Image):
        with open_regular(Path(source)) as file:
            start = file.read(12)
    brand = start[8:] if start[4:8] == b"ftyp" else b""
    if brand in _HEIC:
        return "is a HEIC, as phones save, which is not read; convert it to PNG or JPEG"
    if brand in _AVIF and not features.check("avif"):
        return "is an AVIF, and this Pillow was built without libavif; convert it to PNG or JPEG"
    return f"is no image that can be read, expected {', '.join(FORMATS)}; save it as PNG"


def _to_rgba(name: str, image: Image.Image, first_frame: bool) -> tuple[Image.Image, str | None]:
    """Return the picture in RGBA and sRGB, and the fault of its colour profile if that could not be applied."""
    _check_size(name, *image.size)
    frames = _frames(image)
    if frames > 1 and not first_frame:
        found = f"{name} has {frames} frames, expected a still image; save one frame as PNG"
        raise UsageError(
            f"{found}, or take the first with the flag --first-frame of run (first_frame=True)", for_client=found
        )
    if image.mode not in MODES:
        raise UsageError(
            f"{name} has mode {image.mode}, expected colours, 8 or 16 bits of grey, a palette or CMYK; save it as an "
            "RGB or RGBA PNG"
        )
    transparent = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(transparent, tuple) and max(transparent) > 255:
        # Pillow keeps the upper bytes of the pixels and compares them with the lower byte of this colour.
        raise UsageError(f"{name} has 16-bit colours and a transparent one, expected 8 bits; save it as an RGBA PNG")
    upright = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        rgba = _grey16_to_rgba(upright, *_grey16_levels(image))
    else:
        rgba = (upright.convert("RGB") if image.mode == "CMYK" else upright).convert("RGBA")
    profile = image.info.get("icc_profile")
    if not profile:
        return rgba, None
    try:
        return to_srgb(rgba, upright, profile), None
    except ProfileError as error:
        return rgba, str(error)


def _to_alpha(name: str, image: Image.Image) -> Image.Image:
    """Return the alpha channel."""
    if (frames := _frames(image)) > 1:
        raise UsageError(f"{name} has {frames} frames, expected a still image; save one frame as PNG")
    if not image.has_transparency_data:
        raise UsageError(
            f"{name} has no alpha channel (mode {image.mode}), expected one that is 0 where the picture is edited; "
            "save it as a PNG or WebP with alpha"
        )
    rgba, _ = _to_rgba(name, image, first_frame=False)
    return rgba.getchannel("A")


def _frames(image: Image.Image) -> int:
    # An MPO is a camera's JPEG with a preview or a gain map behind the picture.
    return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)


def _check_size(name: str, width: int, height: int) -> None:
    size = f"{name} is {width}x{height} pixels"
    short, long = sorted((width, height))
    if short < SIDE_MULTIPLE:
        raise UsageError(
            f"{size}, expected at least {SIDE_MULTIPLE} a side: one of the text encoder's image slots; scale it up"
        )
    if long > MAX_SIDE:
        raise UsageError(f"{size}, expected at most {MAX_SIDE} a side; scale it down")
    if width * height > MAX_PIXELS:
        raise UsageError(f"{size}, {width * height} in all, expected at most {MAX_PIXELS}; scale it down")
    if long > MAX_ASPECT_RATIO * short:
        raise UsageError(f"{size}, {long / short:.0f}:1, expected at most {MAX_ASPECT_RATIO}:1; crop it")


def _grey16_levels(image: Image.Image) -> tuple[int, int]:
    """Return the values of black and white. A TIFF names them: white may be 0, or 4095 in 12 bits."""
    tags = getattr(image, "tag_v2", {})
    levels = 0, 4095 if tags.get(_BITS_PER_SAMPLE) == (12,) else 65535
    return levels[::-1] if tags.get(_PHOTOMETRIC_INTERPRETATION) == 0 else levels


def _grey16_to_rgba(image: Image.Image, black: int, white: int) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    most = max(black, white)
    grey = (510 * values + most) // (2 * most)  # rounded; 257 is odd, so there are no ties in 16 bits
    grey = np.clip(grey if white else 255 - grey, 0, 255)
    alpha = np.where(values == image.info.get("transparency"), 0, 255)
    return Image.fromarray(np.stack([grey, grey, grey, alpha], axis=-1).astype(np.uint8))
