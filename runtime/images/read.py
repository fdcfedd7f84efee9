"""The reader of reference images: opens a file, checks size and mode before decoding, and returns upright RGBA."""

import struct
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.runtime.model.size import MAX_REFERENCES, SIDE_MULTIPLE

MAX_SIDE = 16_384

MAX_PIXELS = 2**27
"""Most pixels of a reference image: 134 million, 512 MiB as RGBA. A 108-megapixel photograph is accepted, a picture of
16,384 squared is not."""

MAX_ASPECT_RATIO = 200
"""Largest aspect ratio. transformers' `smart_resize`, in front of the vision tower, refuses a longer picture."""

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
"""Formats that Pillow decodes inside this process. Pillow gives others (EPS) to external programs."""

MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA"}
"""Pillow's modes that mean one RGBA picture. The range of I and F is the writer's choice; CMYK needs a profile."""

# What Pillow's decoders raise for a damaged file.
DAMAGE = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, struct.error)

ReferenceSource = str | Path | Image.Image


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
    name = getattr(source, "filename", "") if isinstance(source, Image.Image) else source
    return f"reference image {str(name) or '(from memory)'}"


def read_reference(source: ReferenceSource) -> Image.Image:
    """Read a reference image, upright as its EXIF orientation says (diffusers' `load_image`), in mode RGBA.

    Size and mode are checked from the file's header, before the pixels are decoded. 16-bit grey is scaled to 8 bits;
    Pillow's own conversion would clip it. Colour profiles are not applied, as in diffusers.

    Args:
        source: a file in one of `FORMATS`, or an image, which is not modified.

    Raises:
        UsageError: the source is neither a path nor an image, the file does not exist, cannot be opened, is no image or
            is damaged, or the image is animated, has an ambiguous mode, or has a side, an area or an aspect ratio
            outside the accepted range.
    """
    if not isinstance(source, ReferenceSource):
        raise UsageError(f"a reference image is {type(source).__name__}, expected a path or a PIL image")
    name = reference_name(source)
    try:
        # Pillow warns of damaged metadata, and of sizes that are accepted or refused here.
        with warnings.catch_warnings(action="ignore"):
            if isinstance(source, Image.Image):
                return _to_rgba(name, source)
            path = Path(source)
            if not path.exists():
                raise UsageError(f"{name}: no such file; check the path")
            if not path.is_file():
                raise UsageError(f"{name} is a {'folder' if path.is_dir() else 'device or pipe'}, expected a file")
            with Image.open(path, formats=FORMATS) as image:
                return _to_rgba(name, image)
    except UnidentifiedImageError as error:
        raise UsageError(
            f"{name} is no image that can be read, expected {', '.join(FORMATS)}; save it as PNG"
        ) from error
    except Image.DecompressionBombError as error:
        raise UsageError(f"{name} has more than the {MAX_PIXELS} pixels that are read; scale it down") from error
    except PermissionError as error:
        raise UsageError(f"{name} cannot be opened ({error.strerror}); check its permissions") from error
    except DAMAGE as error:
        raise UsageError(f"{name} cannot be read to its end ({error}); check the file or save it as PNG") from error


def _to_rgba(name: str, image: Image.Image) -> Image.Image:
    _check_size(name, *image.size)
    # An MPO is a camera's JPEG with a preview or a gain map behind the picture.
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        raise UsageError(f"{name} has {frames} frames, expected a still image; save one frame as PNG")
    is_grey16 = image.mode == "I;16" and image.format != "TIFF"  # where white may be the lowest value, or 4095
    if image.mode not in MODES and not is_grey16:
        raise UsageError(
            f"{name} has mode {image.mode}, expected colours, grey or a palette ({', '.join(sorted(MODES))}, or a PNG "
            "of 16-bit grey); save it as an RGB or RGBA PNG"
        )
    transparent = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(transparent, tuple) and max(transparent) > 255:
        # Pillow keeps the upper bytes of the pixels and compares them with the lower byte of this colour.
        raise UsageError(f"{name} has 16-bit colours and a transparent one, expected 8 bits; save it as an RGBA PNG")
    upright = ImageOps.exif_transpose(image)
    return _grey16_to_rgba(upright) if is_grey16 else upright.convert("RGBA")


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


def _grey16_to_rgba(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.uint32)
    grey = (values + 128) // 257  # 65535 is 255; 257 is odd, so there are no ties
    alpha = np.where(values == image.info.get("transparency"), 0, 255)
    return Image.fromarray(np.stack([grey, grey, grey, alpha], axis=-1).astype(np.uint8))
