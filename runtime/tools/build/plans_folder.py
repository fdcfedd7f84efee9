"""The plans folder of a bundle: locked during a build, and cleared of unfinished and unlisted files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.core.files import leads_out
from qwen_image_engine.engines.plans.entry import LAYERS, PLAN
from qwen_image_engine.engines.tensorrt.jit_cache import SUFFIX
from qwen_image_engine.runtime.bundle.manifest import Manifest, read_manifest, write_manifest
from qwen_image_engine.runtime.system.folder_lock import locked

PLANS = "plans"
"""Folder of a bundle with its plans and their `LAYERS` files, and with timing caches, which the manifest does not
list."""


_PARTIAL = ".partial"


@dataclass
class PlansFolder:
    """The folder of a bundle's plans, which this process has locked.

    Attributes:
        bundle: the bundle's folder.
        path: the plans folder in the bundle.
        manifest: the bundle's manifest, as it was read under the lock or last written.
        recording: lock of the manifest among builds side by side.
    """

    bundle: Path
    path: Path
    manifest: Manifest
    recording: Lock = field(default_factory=Lock)


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
        manifest = read_manifest(folder)  # another build may have written it before the lock
        plans = PlansFolder(folder, path, _without_lost_plans(folder, manifest))
        if plans.manifest != manifest:
            write_manifest(folder, plans.manifest)
        _sweep(plans, (_PARTIAL, PLAN, LAYERS))  # the account of a refused engine stays until here
        try:
            yield plans
        finally:
            _sweep(plans, (_PARTIAL, PLAN))
            with suppress(OSError):
                path.rmdir()  # where nothing came of it


def _without_lost_plans(folder: Path, manifest: Manifest) -> Manifest:
    """Return the manifest without plans whose files are gone: somebody removed them, with the folder perhaps."""
    kept = {
        name: tuple(plan for plan in plans if all((folder / file).is_file() for file in plan.listed))
        for name, plans in manifest.plans.items()
    }
    found = replace(manifest, plans={name: plans for name, plans in kept.items() if plans})
    lost = manifest.plan_files - found.plan_files
    return replace(found, files={name: entry for name, entry in manifest.files.items() if name not in lost})


def _sweep(plans: PlansFolder, endings: tuple[str, ...]) -> None:
    """Remove links, the files with these endings that the manifest does not list, and kernels compiled for no listed
    plan.

    A bundle from others may hold a link in the place of a timing cache, and timings are written where it leads.
    """
    listed = {Path(name).name for name in plans.manifest.plan_files}
    stems = {Path(name).stem for name in plans.manifest.plan_files}
    for path in plans.path.iterdir():
        # What was compiled on a card for a plan goes with the plan.
        of_none = path.suffix == SUFFIX and not any(path.name.startswith(f"{stem}.") for stem in stems)
        if of_none or ((path.is_symlink() or path.name.endswith(endings)) and path.name not in listed):
            path.unlink(missing_ok=True)
