"""Files of a verb's arguments: names of the output files, the flag `--report`, and given latents."""

import argparse
import math
import os
from pathlib import Path
from tokenize import TokenError
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from qwen_image_engine.engines.core.errors import QwenImageError, UsageError, one_line
from qwen_image_engine.engines.core.files import is_stream, open_regular


def picture_paths(output: Path, num_images: int) -> list[Path]:
    """Return the paths of the pictures: `out.png` for one picture, `out-0.png`, `out-1.png`, … for several.

    Raises:
        UsageError: the name does not end in .png, or there are several pictures for a pipe or a device.
    """
    from qwen_image_engine.runtime.images.png import check_png_name  # Pillow, which other verbs do not need

    check_png_name(output)
    if num_images == 1:
        return [output]
    if is_stream(output):
        raise UsageError(f"{output} is a pipe or a device, which takes one picture, and {num_images} are asked for")
    return [output.with_name(f"{output.stem}-{index}{output.suffix}") for index in range(num_images)]


def add_report_argument(parser: argparse.ArgumentParser) -> None:
    """Declare the flag `--report`."""
    parser.add_argument(
        "--report",
        type=Path,
        metavar="DIR",
        help="write one HTML page of it, with plots and pictures, to DIR/index.html; needs matplotlib",
    )


def read_latents(path: Path) -> NDArray[np.float32]:
    """Read the array in a .npy file. The sampler checks its dtype and shape.

    Raises:
        QwenImageError: the file cannot be read, is not regular, is larger than latents can be, or does not hold a
            single array of numbers.
    """
    try:
        with open_regular(path, _MAX_LATENTS_BYTES) as file:
            if file.read(4) == b"PK\x03\x04":
                raise QwenImageError(f"{path} is an archive of arrays, expected a .npy file of one")
            file.seek(0)
            return _array(file)
    except OSError as error:
        raise QwenImageError(f"cannot read {path}: {error.strerror or error}") from error
    except _NOT_NPY as error:
        raise QwenImageError(f"{path} is not a .npy file of numbers ({one_line(error)[:200]})") from error


def _array(file: BinaryIO) -> NDArray[np.float32]:
    """Read a .npy file of version 1 or 2. Numpy's `load` would allocate any shape that a header states.

    Raises:
        Exception: an item of `_NOT_NPY`: the header is damaged, or the file has another size than it says.
    """
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    version = npy.read_magic(file)
    if version not in readers:
        raise ValueError(f"version {version}, expected 1.0 or 2.0")
    shape, columns_first, dtype = readers[version](file)
    if dtype.kind not in "biufc":
        raise ValueError(f"its dtype is {dtype}")
    expected, found = math.prod(shape) * dtype.itemsize, os.fstat(file.fileno()).st_size - file.tell()
    if min(shape, default=0) < 0 or expected != found:
        raise ValueError(f"its header says {expected} bytes, it holds {found}")
    values = np.fromfile(file, dtype, math.prod(shape))
    return values.reshape(shape, order="F" if columns_first else "C")


_MAX_LATENTS_BYTES = 1 << 30
_NOT_NPY = (ValueError, EOFError, TypeError, SyntaxError, OverflowError, RecursionError, MemoryError, TokenError)
"""Errors of numpy's reader of headers, which evaluates them as Python literals."""
