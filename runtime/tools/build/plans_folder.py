"""The folder of a bundle's engines: one build at a time, and no file in it that is half or nobody's."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.runtime.bundle.manifest import Manifest, read_manifest

PLANS = "plans"
"""Folder of a bundle with its engines, and what the manifest does not list: timings of kernels, `LAYERS`."""

LAYERS = ".layers.json"
"""Behind a component's name: what TensorRT's inspector said of the last engine built of it, refused or not."""


@dataclass
class PlansFolder:
    """The folder of a bundle's plans, which this process has locked.

    Attributes:
        bundle: the bundle's folder.
        path: the folder of plans in it.
        manifest: the bundle's, as it was read under the lock, or written since.
    """

    bundle: Path
    path: Path
    manifest: Manifest


@contextmanager
def plans_folder(folder: Path) -> Iterator[PlansFolder]:
    """Lock the folder of plans for one build, and remove before and after what an interrupted one left.

    Raises:
        QwenImageError: another build holds it.
    """
    path = folder / PLANS
    descriptor = _held(path)
    try:
        plans = PlansFolder(folder, path, read_manifest(folder))  # another build may have written it before the lock
        _sweep(plans)
        try:
            yield plans
        finally:
            _sweep(plans)
            with suppress(OSError):
                path.rmdir()  # where nothing came of it
    finally:
        os.close(descriptor)


def _held(plans: Path) -> int:
    """A descriptor that locks the folder, made where it is not there.

    A build that made nothing removes the folder: one opened just before that is nobody's any more, and is made again.
    """
    while True:
        plans.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):
            descriptor = os.open(plans, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(descriptor), plans.stat()):
                    return descriptor
            except BlockingIOError:
                os.close(descriptor)
                raise QwenImageError(f"{plans}: another build is writing it; wait for that to end") from None
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)


def _sweep(plans: PlansFolder) -> None:
    """Remove partial files, and plans that the manifest does not list."""
    listed = {Path(entry.file).name for entry in plans.manifest.plans.values()}
    for path in plans.path.iterdir():
        if path.suffix == ".partial" or (path.suffix == ".plan" and path.name not in listed):
            path.unlink(missing_ok=True)
