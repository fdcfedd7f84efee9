"""The plans folder of a bundle: locked during a build, and cleared of unfinished and unlisted files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.core.files import leads_out
from qwen_image_engine.runtime.bundle.manifest import Manifest, read_manifest
from qwen_image_engine.runtime.system.folder_lock import locked

PLANS = "plans"
"""Folder of a bundle with its plans, and with timing caches and `LAYERS` files, which the manifest does not list."""

LAYERS = ".layers.json"
"""Suffix of the file with the report of TensorRT's engine inspector on a component's last built engine.

The prefix is the component's name. The file is written for a refused engine too.
"""


@dataclass
class PlansFolder:
    """The folder of a bundle's plans, which this process has locked.

    Attributes:
        bundle: the bundle's folder.
        path: the plans folder in the bundle.
        manifest: the bundle's manifest, as it was read under the lock or last written.
    """

    bundle: Path
    path: Path
    manifest: Manifest


@contextmanager
def plans_folder(folder: Path) -> Iterator[PlansFolder]:
    """Lock the plans folder for one build; create it if it does not exist. Remove unfinished and unlisted files before
    and after the build.

    Raises:
        FolderBusyError: another build holds the lock.
        QwenImageError: the folder is a link out of the bundle.
    """
    path = folder / PLANS
    with locked(folder / f".{PLANS}.lock", f"{path}: another build is writing it; wait for that to end"):
        if leads_out(path, folder):  # whatever looks like a plan would be removed there
            raise QwenImageError(f"{path}: is a link out of the bundle, expected a folder; remove it")
        path.mkdir(exist_ok=True)
        plans = PlansFolder(folder, path, read_manifest(folder))  # another build may have written it before the lock
        _sweep(plans)
        try:
            yield plans
        finally:
            _sweep(plans)
            with suppress(OSError):
                path.rmdir()  # where nothing came of it


def _sweep(plans: PlansFolder) -> None:
    """Remove partial files, links, and plans that the manifest does not list.

    A bundle from others may hold a link in the place of a timing cache, and timings are written where it leads.
    """
    listed = {Path(entry.file).name for entry in plans.manifest.plans.values()}
    for path in plans.path.iterdir():
        if path.suffix == ".partial" or ((path.is_symlink() or path.suffix == ".plan") and path.name not in listed):
            path.unlink(missing_ok=True)
