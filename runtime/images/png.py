"""The conversion of the decoder's output to RGBA bytes, and PNG files that contain the picture's parameters."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin, UnidentifiedImageError

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
    unit = np.clip(image * np.float32(0.5) + np.float32(0.5), 0.0, 1.0)
    return np.ascontiguousarray(np.round(unit * np.float32(255)).astype(np.uint8).transpose(0, 2, 3, 1))


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


def save_png(path: Path, rgba: NDArray[np.uint8], parameters: Mapping[str, str]) -> None:
    """Write a PNG file with one text chunk for each parameter. The file appears whole or not at all.

    Args:
        path: the file; an existing file is replaced.
        rgba: pixels (height, width, 4) uint8.
        parameters: text of any script under Latin-1 keys of 1 to 79 characters.

    Raises:
        QwenImageError: the file cannot be written.
    """
    chunks = PngImagePlugin.PngInfo()
    for key, value in parameters.items():
        # iTXt is UTF-8 for every script; tEXt would be Latin-1 for some values and iTXt for others.
        chunks.add_itxt(key, value)
    try:
        with whole_file(path) as file:
            Image.fromarray(rgba, "RGBA").save(file, "PNG", pnginfo=chunks)
            check_cancelled()
    except OSError as error:
        raise QwenImageError(f"cannot write {path}: {error.strerror or error}") from error


def png_bytes(picture: Image.Image | NDArray[np.uint8]) -> bytes:
    """Return a picture as a PNG without parameters. An array is (height, width, 4) uint8."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture, "RGBA")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def read_png_parameters(path: Path) -> dict[str, str]:
    """Read the text chunks of a PNG file.

    Raises:
        QwenImageError: the file cannot be read or is not a PNG.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.load()
            return {str(key): str(value) for key, value in image.info.items() if isinstance(value, str)}
    except UnidentifiedImageError as error:
        raise QwenImageError(f"{path} is not a PNG") from error
    except (OSError, SyntaxError) as error:
        raise QwenImageError(f"cannot read {path}: {error}") from error
