"""Files of a verb's arguments: names of the output files, the flag `--report`, and given latents."""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.engines.core.files import is_stream


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
        QwenImageError: the file cannot be read or does not hold a single array of numbers.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except OSError as error:
        raise QwenImageError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise QwenImageError(f"{path} is not a .npy file of numbers ({error})") from error
    if not isinstance(array, np.ndarray):
        raise QwenImageError(f"{path} is an archive of arrays, expected a .npy file of one")
    return array
