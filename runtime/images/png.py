"""The conversion of the decoder's output to RGBA bytes, and the writer of PNG files."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.engines.core.files import is_stream, whole_file
from qwen_image_engine.runtime.system.cancellation import check_cancelled


def to_rgba8(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Convert a decoded image to bytes, rounded half to even like diffusers' `VaeImageProcessor.postprocess`.

    Args:
        image: decoded image (batch, 4, height, width) in [-1, 1]; values outside are clamped.

    Returns:
        Pixels (batch, height, width, 4) uint8.

    Raises:
        QwenImageError: a value is not finite.
    """
    if not np.isfinite(image).all():
        raise QwenImageError(
            f"the decoded image holds {np.count_nonzero(~np.isfinite(image))} values that are not finite; "
            "run the VAE decoder in fp32 or bf16"
        )
    scaled = image * np.float32(0.5)  # the one copy: a picture of 16 million pixels takes 256 MB in fp32
    scaled += np.float32(0.5)
    np.clip(scaled, 0.0, 1.0, out=scaled)
    scaled *= np.float32(255)
    np.rint(scaled, out=scaled)
    by_pixel = scaled.transpose(0, 2, 3, 1)
    pixels = np.empty(by_pixel.shape, np.uint8)
    pixels[...] = by_pixel
    return pixels


def check_png_name(path: Path) -> None:
    """Raise if a file name does not match the format that is written. Pipes and devices may have any name.

    Raises:
        UsageError: the name does not end in .png.
    """
    if path.suffix.lower() != ".png" and not is_stream(path):
        raise UsageError(f"{path}: pictures are written as PNG, expected a name that ends in .png")


def reduced(rgba: NDArray[np.uint8], by: int) -> NDArray[np.uint8]:
    """Average a picture (height, width, 4) over squares of `by` pixels, colours weighted by their alpha."""
    picture = Image.fromarray(rgba, "RGBA").convert("RGBa").reduce(by).convert("RGBA")
    return np.asarray(picture)


def save_png(path: Path, rgba: NDArray[np.uint8], chunks: PngImagePlugin.PngInfo | None = None) -> None:
    """Write a PNG file with text chunks. The file appears whole or not at all.

    Args:
        path: the file; an existing file is replaced.
        rgba: pixels (height, width, 4) uint8.
        chunks: text chunks, which are written before the pixels.

    Raises:
        QwenImageError: the file cannot be written.
    """
    try:
        with whole_file(path) as file:
            Image.fromarray(rgba, "RGBA").save(file, "PNG", pnginfo=chunks)
            check_cancelled()
    except OSError as error:
        raise QwenImageError(f"cannot write {path}: {error.strerror or error}") from error


def png_bytes(picture: Image.Image | NDArray[np.uint8], chunks: PngImagePlugin.PngInfo | None = None) -> bytes:
    """Return a picture as a PNG with text chunks, or without. An array is (height, width, 4) uint8."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture, "RGBA")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()
