"""The plans folder of a bundle: locked during a build, and cleared of unfinished and unlisted files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qwen_image_engine.runtime.bundle.manifest import read_manifest
from qwen_image_engine.runtime.system.folder_lock import locked

PLANS = "plans"
"""Folder of a bundle with its engines, and what the manifest does not list: timings of kernels, `LAYERS`."""

LAYERS = ".layers.json"
"""Behind a component's name: what TensorRT's inspector said of the last engine built of it, refused or not."""


@contextmanager
def plans_folder(folder: Path) -> Iterator[Path]:
    """Lock the plans folder during the block; remove what an interrupted build left, before and after.

    Raises:
        FolderBusyError: another build holds the lock.
    """
    plans = folder / PLANS
    with locked(plans, "another build is writing it; wait for that to end"):
        _sweep(folder, plans)
        try:
            yield plans
        finally:
            _sweep(folder, plans)
            with suppress(OSError):
                plans.rmdir()  # where nothing came of it


def _sweep(folder: Path, plans: Path) -> None:
    """Remove partial files, and plans that the manifest does not list."""
    listed = {Path(entry.file).name for entry in read_manifest(folder).plans.values()}
    for path in plans.iterdir():
        if path.suffix == ".partial" or (path.suffix == ".plan" and path.name not in listed):
            path.unlink(missing_ok=True)
