"""Atomic writes of files and folders: each is written under a temporary name, then renamed."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path, *, temporary: Path | None = None, durable: bool = False) -> Iterator[BinaryIO]:
    """Open a file beside `path`. Rename it to `path` if the block ends without an exception, and remove it otherwise.

    Args:
        path: the file to write; an existing one is replaced.
        temporary: path of the file until it is renamed, in the same folder. None for a random name, which two writers
            cannot share. A killed process leaves this file behind; under a fixed name the next writer overwrites it.
        durable: whether to flush the contents to the disk before the rename, so that a power cut cannot leave an empty
            file.

    Raises:
        OSError: the file cannot be written or renamed.
    """
    written = temporary or _random_name(path)
    try:
        with written.open("xb" if temporary is None else "wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        written.replace(path)
    finally:
        with suppress(OSError):  # renamed already, or never created
            written.unlink()


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Create a folder beside `folder`. Rename it if the block ends without an exception, and remove it otherwise.

    Args:
        folder: path of a new folder, or of an empty one.

    Raises:
        OSError: the folder cannot be written, or `folder` exists and is not empty.
    """
    written = _random_name(folder)
    try:
        written.mkdir()
        yield written
        rename_folder(written, folder)
    finally:
        shutil.rmtree(written, ignore_errors=True)


def rename_folder(folder: Path, target: Path) -> None:
    """Rename a folder. `target` is a new path, or that of an empty folder, which is removed first.

    Windows replaces no folder by a rename, not even an empty one.

    Raises:
        OSError: `target` is a file or a folder that is not empty, or the folder cannot be renamed.
    """
    with suppress(FileNotFoundError):
        target.rmdir()
    folder.rename(target)


def _random_name(path: Path) -> Path:
    # ".partial" is also what a build removes from its folder of plans.
    return path.parent / f".{secrets.token_hex(8)}.partial"
