"""What tests keep from one run to the next, in files named by a hash of all that they are made from."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import secrets
import time
from collections.abc import Iterable
from pathlib import Path

from tests.support.paths import ROOT


def kept_folder(name: str) -> Path:
    """Return the folder of kept files of one kind, which all workers and runs share, without what no run uses."""
    folder = ROOT / ".pytest_cache" / name
    folder.mkdir(parents=True, exist_ok=True)
    forget(folder)
    return folder


def forget(folder: Path, days: float = 14) -> None:
    """Remove files that no run has used for so long."""
    for file in folder.glob("*"):
        if time.time() - file.stat().st_mtime > days * 86400:
            file.unlink(missing_ok=True)


def write(file: Path, data: bytes) -> None:
    """Write a file that other workers see as a whole or not at all."""
    unfinished = file.with_name(f"{secrets.token_hex(8)}.tmp")
    unfinished.write_bytes(data)
    unfinished.replace(file)


def hash_of_sources(home: Path, names: Iterable[str], packages: Iterable[str]) -> str:
    """Hash the files of these names below `home`, the versions of packages, and Python's."""
    digest = hashlib.sha256(platform.python_version().encode())
    for package in packages:
        digest.update(f"{package} {importlib.metadata.version(package)}\n".encode())
    for name in sorted(names):
        digest.update(f"{name} {hashlib.sha256((home / name).read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()
