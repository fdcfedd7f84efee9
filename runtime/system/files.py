"""Files: hashing, a check before writing, and writing that leaves a file whole or absent."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.core.files import is_stream, link_target, open_regular, whole_file
from qwen_image_engine.runtime.system.cancellation import check_cancelled
from qwen_image_engine.runtime.system.text import command_line


def with_home(path: str | Path) -> Path:
    """Return a path whose `~` or `~user` is the home folder, as a shell has it.

    Raises:
        QwenImageError: there is no such user, or the user has no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:  # without HOME and without an entry in the password database
        raise QwenImageError(f"{path}: there is no home folder {Path(path).parts[0]}; write the whole path") from None


def file_sha256(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """Return the SHA-256 of a regular file's bytes, read in blocks. `progress` is called with the bytes of each block.

    Raises:
        QwenImageError: the file cannot be read, or is a pipe or a device.
    """
    digest = hashlib.sha256()
    try:
        with open_regular(path, buffering=0) as file:
            buffer = memoryview(bytearray(min(_BLOCK_BYTES, max(1, os.fstat(file.fileno()).st_size))))
            while count := file.readinto(buffer):
                digest.update(buffer[:count])
                if progress is not None:
                    progress(count)
    except OSError as error:
        raise QwenImageError(f"{path}: cannot be read ({error.strerror or error})") from error
    return digest.hexdigest()


def check_writable(*paths: Path) -> None:
    """Raise if a path could not be written. Try each folder with a probe file that is removed at once.

    Permissions alone do not show read-only disks. A pipe or a device is not probed: opening it may wait for a reader.

    Raises:
        QwenImageError: a path is a folder or has a name that the filesystem cannot hold, its folder does not exist or
            is not writable, it is a pipe or a device without permission to write, or a symlink that leads to itself.
    """
    for path in paths:
        if path.is_dir():
            raise QwenImageError(f"cannot write {path}: it is a folder")
        if is_stream(path):
            if not os.access(path, os.W_OK):
                raise QwenImageError(f"cannot write {path}: no permission; choose another name")
            continue
        try:
            target = link_target(path)
            folder = target.parent
            if not folder.is_dir():
                raise QwenImageError(f"cannot write {path}: {no_folder(folder)}")
            probe = folder / f".{secrets.token_hex(8)}.tmp"
            with suppress(FileNotFoundError):
                target.lstat()  # fails for a name that this filesystem cannot hold
            probe.touch(exist_ok=False)
            probe.unlink()
        except OSError as error:
            raise QwenImageError(
                f"cannot write {path}: {error.strerror or error}; choose a folder that can be written to"
            ) from error


def no_folder(folder: Path) -> str:
    """Return the text that a folder does not exist, with the command that makes it."""
    return f"no folder {folder}; make it with: {command_line('mkdir', '-p', folder)}"


def write_array(path: Path, array: NDArray[np.float32]) -> None:
    """Write a .npy file.

    Raises:
        QwenImageError: the file cannot be written.
    """
    _write(path, lambda file: np.save(file, array))


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON file.

    Raises:
        QwenImageError: the file cannot be written.
    """
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    _write(path, lambda file: file.write(text.encode()))


def _write(path: Path, fill: Callable[[BinaryIO], Any]) -> None:
    check_cancelled()
    try:
        with whole_file(path) as file:
            fill(file)
    except OSError as error:
        raise QwenImageError(f"cannot write {path}: {error.strerror or error}") from error


# A block is hashed without the interpreter's lock. Beside a thread that computes, taking the lock again waits up to
# 5 ms, twice a block; 32 MB take 20 ms or more to hash, so that does not count.
_BLOCK_BYTES = 32 << 20
