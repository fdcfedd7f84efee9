"""Atomic writes of files and folders: each is written under a temporary name, then renamed."""

from __future__ import annotations

import io
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path, *, temporary: Path | None = None, durable: bool = False) -> Iterator[BinaryIO]:
    """Open a file beside `path`. Rename it to `path` if the block ends without an exception, and remove it otherwise.

    A pipe or a device cannot be replaced. The block then writes to memory, and the contents go there at its end.

    Args:
        path: the file to write; an existing one is replaced. A symlink is kept and its target replaced, except with
            `temporary`.
        temporary: path of the file until it is renamed, in the same folder. None for a random name, which two writers
            cannot share. A killed process leaves this file behind; under a fixed name the next writer overwrites it.
            Fixed names are for folders that belong to the package.
        durable: whether to flush the contents to the disk before the rename, so that a power cut cannot leave an empty
            file.

    Raises:
        OSError: the file cannot be written or renamed.
    """
    if is_stream(path):
        buffer = io.BytesIO()
        yield buffer
        with path.open("wb") as stream:
            stream.write(buffer.getbuffer())
        return
    if temporary is None:
        path = link_target(path)
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


def is_stream(path: Path) -> bool:
    """Return whether `path` is a pipe or a device, or a symlink to one. Contents are sent there, not stored."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def link_target(path: Path) -> Path:
    """Return the path that a symlink stands for, which need not exist, and any other path as it is.

    Raises:
        OSError: the symlink leads to itself.
    """
    if not path.is_symlink():
        return path
    with suppress(FileNotFoundError):
        path.stat()
    return Path(os.path.realpath(path))


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
