"""The plans in a manifest: find an existing plan, copy a plan from another bundle, and record a new plan."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.plans.entry import PlanEntry
from qwen_image_engine.runtime.bundle.files import check_files
from qwen_image_engine.runtime.bundle.manifest import Manifest, read_manifest, write_manifest
from qwen_image_engine.runtime.bundle.manifest_entries import FileEntry
from qwen_image_engine.runtime.system.files import file_sha256
from qwen_image_engine.runtime.system.text import command_line
from qwen_image_engine.runtime.tools.build.plans_folder import PLANS, PlansFolder


@dataclass(frozen=True)
class PlanSource:
    """A bundle to copy plans from: whole, or its manifest and plans alone.

    Plans without weights can be shared without the bundle's other files.
    """

    folder: Path
    manifest: Manifest


def kept_plan(plans: PlansFolder, name: str, key: str) -> PlanEntry | None:
    """Return the existing plan of a component, or None if its key or its file's SHA-256 does not match."""
    entry = plans.manifest.plans.get(name)
    if entry is None or entry.key != key:
        return None
    path = plans.bundle / entry.file
    return entry if path.is_file() and file_sha256(path) == plans.manifest.files[entry.file].sha256 else None


def take_plan(plans: PlansFolder, source: PlanSource, name: str, key: str) -> PlanEntry | None:
    """Copy the plan with this key from another bundle and record it. Return None if that bundle has no such plan.

    The key includes the hashes of graph and weights, so a plan with this key is built from the same graph and weights.

    Raises:
        QwenImageError: the plan cannot be copied, contains weights, or does not have the SHA-256 that its manifest
            lists.
    """
    plan = source.manifest.plans.get(name)
    if plan is None or plan.key != key:
        return None
    path = source.folder / plan.file
    check_files(source.folder, source.manifest, [plan.file])
    written = plans.path / f".{name}.partial"
    try:
        shutil.copyfile(path, written)
    except OSError as error:
        raise QwenImageError(f"{path}: cannot be copied ({error.strerror or error})") from error
    expected = source.manifest.files[plan.file]
    if not plan.stripped or file_sha256(written) != expected.sha256:
        rebuild = command_line("qwen-image", "build", source.folder, "--strip-weights")
        raise QwenImageError(
            f"{path}: has {'weights' if not plan.stripped else 'other contents than its sha256 says'}; "
            f"expected a plan of --strip-weights, whole: have it built again with: {rebuild}"
        )
    taken = replace(plan, file=f"{PLANS}/{path.name}")
    record_plan(plans, name, taken, written, expected)
    return taken


def record_plan(plans: PlansFolder, name: str, plan: PlanEntry, written: Path, file: FileEntry) -> None:
    """Rename the written plan to its final name, record it in the manifest, and then delete the plan that it replaces.

    The manifest is read again, because `verify` may have written to it during the build.
    """
    written.replace(plans.bundle / plan.file)
    manifest = read_manifest(plans.bundle)
    old = manifest.plans.get(name)
    files = {path: entry for path, entry in manifest.files.items() if old is None or path != old.file}
    files[plan.file] = file
    plans.manifest = replace(manifest, files=files, plans={**manifest.plans, name: plan})
    write_manifest(plans.bundle, plans.manifest)
    if old is not None and old.file != plan.file:
        (plans.bundle / old.file).unlink(missing_ok=True)
