"""Reading of regular files, which no pipe can hold up, and atomic writes: a temporary name, then a rename."""

from __future__ import annotations

import errno
import io
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast


def open_regular(path: Path, most: int | None = None, *, buffering: int = -1) -> io.BufferedReader | io.FileIO:
    """Open a regular file for reading.

    A pipe would wait for a writer and a device may have no end. The opening does not wait, and the opened file is
    checked, so that a change of its name in between does not count.

    Args:
        path: a file, or a symlink to one.
        most: largest size that is accepted, in bytes; None for any.
        buffering: buffering as in `open`.

    Raises:
        OSError: the file cannot be opened, is not regular, or is larger than `most`.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except ValueError:  # a NUL, or half a character
        raise OSError(errno.EINVAL, "no file can have this name", str(path)) from None
    try:
        _check_regular(path, os.fstat(descriptor), most)
        return cast("io.BufferedReader | io.FileIO", os.fdopen(descriptor, "rb", buffering))
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path, most: int) -> bytes:
    """Read a regular file of at most `most` bytes.

    Raises:
        OSError: the file cannot be read, is not regular, or is larger than `most`.
    """
    with open_regular(path, most) as file:
        data = file.read(most + 1)
    if len(data) > most:  # it grew, or its size was not known, as in /proc
        raise _too_large(path, len(data), most)
    return data


def regular_size(path: Path) -> int:
    """Return the bytes of a regular file.

    Raises:
        OSError: the file does not exist or is not regular.
    """
    status = path.stat()
    _check_regular(path, status, None)
    return status.st_size


def leads_out(path: Path, folder: Path) -> bool:
    """Return whether `path` is in a place outside `folder` once symlinks are followed.

    The files of a snapshot in the hub's cache are links into the repository's folder `blobs`, which counts as inside
    (huggingface_hub, "Understand caching").
    """
    home, place = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
    if place.is_relative_to(home):
        return False
    return home.parent.name != "snapshots" or place.parent != Path(os.path.realpath(home.parent.parent / "blobs"))


def _check_regular(path: Path, status: os.stat_result, most: int | None) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device, expected a file", str(path))
    if most is not None and status.st_size > most:
        raise _too_large(path, status.st_size, most)


def _too_large(path: Path, found: int, most: int) -> OSError:
    return OSError(errno.EFBIG, f"it holds {found} bytes, expected at most {most}", str(path))


@contextmanager
def whole_file(path: Path, *, temporary: Path | None = None, durable: bool = False) -> Iterator[BinaryIO]:
    """Open a file beside `path`. Rename it to `path` if the block ends without an exception, and remove it otherwise.

    A pipe or a device is not replaced, except with `temporary`. The block then writes to memory, and the contents go
    there at its end.

    Args:
        path: the file to write; an existing one is replaced. A symlink is kept and its target replaced, except with
            `temporary`.
        temporary: path of the file until it is renamed, in the same folder. None for a random name, which two writers
            cannot share. A killed process leaves this file behind; under a fixed name the next writer removes it. So it
            does with a link or a pipe of that name, which a folder from others may hold: nothing is written there.
            Fixed names are for folders that belong to the package.
        durable: whether to flush the contents to the disk before the rename, so that a power cut cannot leave an empty
            file.

    Raises:
        OSError: the file cannot be written or renamed.
    """
    if temporary is None and is_stream(path):
        buffer = io.BytesIO()
        yield buffer
        with path.open("wb") as stream:
            stream.write(buffer.getbuffer())
        return
    if temporary is None:
        path = link_target(path)
    written = temporary or _random_name(path)
    written.unlink(missing_ok=True)
    try:
        with written.open("xb") as file:
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
