"""Folders that a run of the tests makes once for all its workers: checkpoints, calibrations, bundles."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock


class SharedFolders:
    """Read-only folders by key, made by whichever worker asks first; the others wait.

    Args:
        home: a folder that all workers of one run have in common.
    """

    def __init__(self, home: Path) -> None:
        self._home = home

    def __call__(self, make: Callable[[Path], Any], name: str, *key: Any) -> Path:
        """Return the folder of a key; `make` is given it where no worker has filled it yet, and it does not exist.

        Args:
            make: fills the folder with what follows from the key alone.
            name: the name of the folder, which may stand in messages.
            key: everything else that decides the content, told apart by `repr`.
        """
        digest = hashlib.sha256(repr((name, *key)).encode()).hexdigest()[:16]
        place = self._home / digest
        place.mkdir(parents=True, exist_ok=True)
        folder, complete = place / name, place / "complete"
        with FileLock(place / "lock"):
            if not complete.is_file():
                shutil.rmtree(folder, ignore_errors=True)  # of a worker whose `make` has failed
                make(folder)
                complete.touch()
        return folder
