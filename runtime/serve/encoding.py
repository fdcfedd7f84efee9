"""The encoding of pictures to files in memory: PNG, WebP or JPEG, with the parameters that the format can hold."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qwen_image_engine.runtime.images.metadata import text_chunks, webui_text, xmp_packet
from qwen_image_engine.runtime.images.parameters import PictureParameters
from qwen_image_engine.runtime.images.png import png_bytes

FileFormat = Literal["png", "webp", "jpeg"]
Background = Literal["transparent", "opaque"]

_EXIF_IFD, _USER_COMMENT = 0x8769, 0x9286
_MOST_COMMENT_BYTES = 60_000
"""A JPEG's EXIF segment holds 65,533 bytes."""


@dataclass(frozen=True)
class Output:
    """The form of a request's pictures.

    Attributes:
        format: file format.
        quality: quality of WebP and JPEG, 0 to 100.
        background: whether transparency is kept or drawn over white.
    """

    format: FileFormat = "png"
    quality: int = 100
    background: Background = "transparent"


def encode(rgba: NDArray[np.uint8], output: Output, parameters: PictureParameters | None = None) -> bytes:
    """Return a picture as a file.

    A PNG that keeps its transparency is byte for byte the file that `qwen-image run` writes. WebP and JPEG hold XMP and
    the parameters' text in EXIF.

    Args:
        rgba: pixels (height, width, 4) uint8.
        output: format of the file.
        parameters: parameters of the picture; None for a partial picture.
    """
    image = Image.fromarray(rgba, "RGBA")
    if output.background == "opaque":
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
    if output.format == "png":
        return png_bytes(image, None if parameters is None else text_chunks(parameters))
    options: dict[str, Any] = {"quality": output.quality}
    if parameters is not None:
        options |= {"xmp": xmp_packet(parameters).encode(), "exif": _exif(parameters)}
    if output.format == "webp":
        options["exact"] = True  # colours under transparency, which an edit may bring back
    buffer = io.BytesIO()
    image.save(buffer, output.format.upper(), **options)
    return buffer.getvalue()


def _exif(parameters: PictureParameters) -> bytes:
    """Return EXIF whose comment is the parameters' text, as web UIs read it. A text that is too long is left out."""
    comment = b"UNICODE\0" + webui_text(parameters).encode("utf-16-be")
    exif = Image.Exif()
    if len(comment) <= _MOST_COMMENT_BYTES:
        exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = comment
    return exif.tobytes()
