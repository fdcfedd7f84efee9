"""The lock of a folder's writer, held through a lock file. One process holds it at a time.

Locking needs the package filelock, because each system locks files in its own way. Drawing takes no lock.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.core.files import is_stream
from qwen_image_engine.engines.core.packages import import_package


class FolderBusyError(QwenImageError):
    """The error that another process holds the lock of a folder."""


@contextmanager
def locked(file: Path, busy: str) -> Iterator[None]:
    """Hold the lock of the lock file `file` during the block; create the file, and remove it at the end.

    The system releases the lock when the process ends, however it ends. The file of a killed process remains, and does
    not keep the next process from locking it.

    Args:
        file: the lock file. On Windows a folder that holds an open file cannot be renamed, so
            the lock file of a folder that is renamed lies beside it.
        busy: text of the error: the folder, its writer, and the remedy.

    Raises:
        FolderBusyError: another process holds the lock.
        QwenImageError: the lock file is a link, a pipe or a device, or the package filelock is not installed or does
            not load.
        OSError: the file cannot be created.
    """
    if file.is_symlink() or is_stream(file):  # the folder may come from others, and locking empties the file
        raise QwenImageError(f"{file}: is a link, a pipe or a device, expected a lock file; remove it")
    filelock = import_package("filelock", "export")
    lock = filelock.FileLock(file, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise FolderBusyError(busy) from None
    try:
        yield
    finally:
        # Removed while it is held: from 4.2 on filelock takes no lock of a file that was removed meanwhile. Windows
        # cannot remove it while it is open, and there `release` does.
        with suppress(OSError):
            file.unlink()
        lock.release()
