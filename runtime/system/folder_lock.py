"""The lock of a folder. One process holds it at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qwen_image_engine.engines.core.errors import QwenImageError


class FolderBusyError(QwenImageError):
    """The error that another process holds the lock of a folder."""


@contextmanager
def locked(folder: Path, busy: str) -> Iterator[None]:
    """Hold the lock of `folder` during the block; create the folder if it does not exist.

    The system releases the lock when the process ends, however it ends.

    Args:
        folder: the folder, whose parent exists.
        busy: text of the error after the folder's name: the writer, and the remedy.

    Raises:
        FolderBusyError: another process holds the lock.
        OSError: the folder cannot be created or opened.
    """
    descriptor = _lock(folder, busy)
    try:
        yield
    finally:
        os.close(descriptor)


def _lock(folder: Path, busy: str) -> int:
    import fcntl  # Windows has no such module, and there everything but the lock has to work

    while True:
        folder.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # If the last holder removed the folder after `open`, this lock protects nothing: create it again.
                if os.path.samestat(os.fstat(descriptor), folder.stat()):
                    return descriptor
            except BlockingIOError:
                os.close(descriptor)
                raise FolderBusyError(f"{folder}: {busy}") from None
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
