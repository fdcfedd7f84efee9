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
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.core.files import rename_folder
from qwen_image_engine.runtime.bundle.manifest import MANIFEST, is_bundle
from qwen_image_engine.runtime.system.folder_lock import FolderBusyError, locked

# renameat2(2): both names change at once; AT_FDCWD takes them as paths.
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100

_LOCK = ".lock"
"""Suffix of a staged folder's lock file, which lies beside the folder."""


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
        QwenImageError: the folder beside `output` cannot be written, or the package filelock is missing.
    """
    made = [folder for folder in output.parents if not folder.exists()]
    folder, held = output.parent / f".{output.name}.{secrets.token_hex(4)}.partial", ExitStack()
    try:
        with held:
            try:
                output.parent.mkdir(parents=True, exist_ok=True)
                _remove_abandoned(output)
                held.enter_context(_locked(folder))
                folder.mkdir()
            except OSError as error:
                raise QwenImageError(f"{output}: cannot be written ({error.strerror or error})") from error
            try:
                yield folder
                _publish(folder, output)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
    except BaseException:
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
        raise


def _remove_abandoned(output: Path) -> None:
    for lock in output.parent.glob(f".{glob.escape(output.name)}.*.partial{_LOCK}"):
        folder = lock.with_name(lock.name.removesuffix(_LOCK))
        with suppress(FolderBusyError), _locked(folder):
            old = _replaced(folder)
            if old.is_dir() and not output.exists():  # killed between the two renames of `_publish`
                old.rename(output)
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def _replaced(folder: Path) -> Path:
    """Return the path of the bundle that a staged folder replaces, during the replacement."""
    return folder.with_suffix(".replaced")


def _locked(folder: Path) -> AbstractContextManager[None]:
    return locked(
        folder.with_name(folder.name + _LOCK), f"{folder}: another export is writing it; wait for that to end"
    )


def _publish(folder: Path, output: Path) -> None:
    if not output.exists() or not any(output.iterdir()):
        rename_folder(folder, output)
        return
    if _exchange(folder, output):
        shutil.rmtree(folder, ignore_errors=True)
        return
    old = _replaced(folder)
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
