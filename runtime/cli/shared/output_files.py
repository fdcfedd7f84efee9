"""Files that a verb will write: checked before the work starts, written whole or not at all."""

import argparse
import json
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.runtime.system.interruption import check_interrupted


def picture_paths(output: Path, num_images: int) -> list[Path]:
    """`out.png` for one picture, `out-0.png`, `out-1.png`, … for several.

    Raises:
        UsageError: the name does not end in .png.
    """
    from qwen_image_engine.runtime.images.png import check_png_name  # Pillow, which other verbs do not need

    check_png_name(output)
    if num_images == 1:
        return [output]
    return [output.with_name(f"{output.stem}-{index}{output.suffix}") for index in range(num_images)]


def add_report_argument(parser: argparse.ArgumentParser) -> None:
    """Declare `--report`."""
    parser.add_argument(
        "--report",
        type=Path,
        metavar="DIR",
        help="write one HTML page of it, with plots and pictures, to DIR/index.html; needs matplotlib",
    )


def check_writable(*paths: Path) -> None:
    """Try each folder with a file that is removed at once: permissions alone do not tell of read-only disks.

    Raises:
        QwenImageError: a file could not be written there.
    """
    for path in paths:
        if path.is_dir():
            raise QwenImageError(f"cannot write {path}: it is a folder")
        if not path.parent.is_dir():
            raise QwenImageError(f"cannot write {path}: no folder {path.parent}; make it with: mkdir -p {path.parent}")
        probe = path.parent / f".{secrets.token_hex(8)}.tmp"
        try:
            probe.touch(exist_ok=False)
            probe.unlink()
        except OSError as error:
            raise QwenImageError(
                f"cannot write {path}: {error.strerror or error}; choose a folder that can be written to"
            ) from error


def read_latents(path: Path) -> NDArray[np.float32]:
    """The array in a .npy file; its dtype and shape are checked where it is used.

    Raises:
        QwenImageError: the file cannot be read or holds no array.
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


def write_array(path: Path, array: NDArray[np.float32]) -> None:
    """Write a .npy file.

    Raises:
        QwenImageError: it cannot be written.
    """
    _write(path, lambda file: np.save(file, array))


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON file.

    Raises:
        QwenImageError: it cannot be written.
    """
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    _write(path, lambda file: file.write(text.encode()))


def _write(path: Path, fill: Callable[[BinaryIO], Any]) -> None:
    check_interrupted()
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        with temporary.open("xb") as file:
            fill(file)
        temporary.replace(path)
    except OSError as error:
        raise QwenImageError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # renamed already, or never made
            temporary.unlink()
