"""The uploaded pictures of an edit: opened from memory or a spooled file, checked before a pixel is decoded."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import PurePosixPath, PureWindowsPath

from PIL import Image, UnidentifiedImageError
from starlette.datastructures import UploadFile

from qwen_image_engine.runtime.images.read import DAMAGE, FORMATS
from qwen_image_engine.runtime.images.reference_image import ReferenceImages
from qwen_image_engine.runtime.pipeline import QwenImage
from qwen_image_engine.runtime.serve.api.errors import ApiError, blamed

_LONGEST_NAME = 200


def read_images(
    pipeline: QwenImage, files: Sequence[UploadFile], resolution: int, most_pixels: int, for_mask: bool = False
) -> ReferenceImages:
    """Decode and fit uploaded reference images. This takes seconds for large ones; no network runs.

    Args:
        pipeline: pipeline that draws after them.
        files: the uploads, in order.
        resolution: side of a square of the area that each is fitted to [pixels].
        most_pixels: most pixels of each upload.
        for_mask: whether the first one's own pixels are kept, which a mask needs.

    Raises:
        ApiError: a file is no picture, is damaged, or has a size, a mode or frames that are not taken.
    """
    images = [open_picture(file, "image", index, most_pixels) for index, file in enumerate(files)]
    with blamed("image"):
        return pipeline.read_references(images, resolution, for_mask=for_mask)


def open_picture(
    file: UploadFile, param: str, index: int | None, most_pixels: int, formats: tuple[str, ...] = FORMATS
) -> Image.Image:
    """Open an uploaded picture. Its header alone is read; the pixels are decoded later.

    Raises:
        ApiError: the file is no picture of these formats, its header is damaged, or it has more than `most_pixels`.
    """
    which = param if index is None else f"{param} {index + 1}"
    try:
        with warnings.catch_warnings(action="ignore"):
            image = Image.open(file.file, formats=formats)
    except UnidentifiedImageError as error:
        text = f"{which} is no picture that can be read, expected {', '.join(formats)}; save it as PNG"
        raise ApiError(400, text, param, "invalid_image") from error
    except Image.DecompressionBombError as error:
        raise _too_many(which, param, most_pixels) from error
    except DAMAGE as error:
        raise ApiError(400, f"{which} is damaged ({error}); save it again", param, "invalid_image") from error
    if image.width * image.height > most_pixels:
        raise _too_many(which, param, most_pixels)
    if name := base_name(file.filename):
        image.filename = name  # the name that the picture's parameters record
    return image


def base_name(name: str | None) -> str:
    """Return the last part of an uploaded file's name, printable and short; nothing is ever opened by it."""
    last = PurePosixPath(PureWindowsPath(name or "").name).name
    return "".join(letter for letter in last if letter.isprintable())[:_LONGEST_NAME]


def _too_many(which: str, param: str, most: int) -> ApiError:
    return ApiError(
        400, f"{which} has more than the {most} pixels that are read; scale it down", param, "invalid_image"
    )
