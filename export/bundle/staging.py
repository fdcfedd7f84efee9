"""A staged folder: built beside its final place, then renamed to it, so that it appears whole or not at all.

A killed process leaves its staged folder behind, but the system releases its lock. The next process that writes to the
same place removes the folder.
"""

from __future__ import annotations

import ctypes
import glob
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.runtime.bundle.manifest import MANIFEST, is_bundle
from qwen_image_engine.runtime.system.folder_lock import FolderBusyError, locked

# renameat2(2): both names change at once; AT_FDCWD takes them as paths.
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100

_BUSY = "another export is writing it; wait for that to end"


def check_output(output: Path) -> None:
    """Raise if `output` exists and is neither a bundle nor an empty folder.

    Raises:
        QwenImageError: `output` is a file, or a folder that holds other things than a bundle.
    """
    if output.is_dir():
        if any(output.iterdir()) and not is_bundle(output):
            raise QwenImageError(
                f"{output}: is a folder with other things in it and no bundle ({MANIFEST}); "
                "name a new folder, or remove it first"
            )
    elif output.exists() or output.is_symlink():
        raise QwenImageError(f"{output}: is a file, expected a new folder or a bundle to replace")


@contextmanager
def staged(output: Path) -> Iterator[Path]:
    """Yield a new folder beside `output`, which takes the place of `output` if the block ends well.

    If the block does not end well, the folder is removed.

    Raises:
        QwenImageError: the folder beside `output` cannot be written.
    """
    made = [folder for folder in output.parents if not folder.exists()]
    folder, lock = output.parent / f".{output.name}.{secrets.token_hex(4)}.partial", ExitStack()
    try:
        try:
            _remove_abandoned(output)
            folder.mkdir(parents=True)
            lock.enter_context(locked(folder, _BUSY))
        except OSError as error:
            raise QwenImageError(f"{output}: cannot be written ({error.strerror or error})") from error
        with lock:
            yield folder
            _publish(folder, output)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
        raise


def _remove_abandoned(output: Path) -> None:
    for folder in output.parent.glob(f".{glob.escape(output.name)}.*.partial"):
        if folder.is_dir():
            with suppress(FolderBusyError), locked(folder, _BUSY):
                shutil.rmtree(folder, ignore_errors=True)


def _publish(folder: Path, output: Path) -> None:
    if not output.exists() or not any(output.iterdir()):
        folder.replace(output)  # an empty folder may be replaced
        return
    if _exchange(folder, output):
        shutil.rmtree(folder, ignore_errors=True)
        return
    old = folder.with_suffix(".replaced")
    output.rename(old)
    try:
        folder.rename(output)
    except BaseException:
        old.rename(output)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap the names of two folders in one step; return False if the system or the filesystem cannot."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    result: int = rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return result == 0
