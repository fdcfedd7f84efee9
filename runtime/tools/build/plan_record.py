"""Plans and the manifest: one that is there already, one of another bundle, one that was just built."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.plans.entry import PlanEntry
from qwen_image_engine.runtime.bundle.manifest import FileEntry, Manifest, read_manifest, write_manifest
from qwen_image_engine.runtime.system.files import file_sha256
from qwen_image_engine.runtime.tools.build.plans_folder import PLANS


def kept_plan(folder: Path, manifest: Manifest, name: str, key: str) -> PlanEntry | None:
    """The plan of this key that is there already, whole."""
    entry = manifest.plans.get(name)
    if entry is None or entry.key != key:
        return None
    path = folder / entry.file
    return entry if path.is_file() and file_sha256(path) == manifest.files[entry.file].sha256 else None


def take_plan(folder: Path, source: Path, name: str, key: str) -> PlanEntry | None:
    """Copy the plan of this key from the bundle `source`, and record it; None where it has none.

    Of `source` only the manifest and the plan are read: what is shared without weights needs no more. The key has the
    hashes of graph and weights, so the plan is of the same ones.

    Raises:
        QwenImageError: `source` is no bundle, or its plan cannot be copied, has weights, or has other bytes than its
            manifest says.
    """
    other = read_manifest(source)
    plan = other.plans.get(name)
    if plan is None or plan.key != key:
        return None
    written = folder / PLANS / f".{name}.partial"
    try:
        shutil.copyfile(source / plan.file, written)
    except OSError as error:
        raise QwenImageError(f"{source / plan.file}: cannot be copied ({error.strerror or error})") from error
    expected = other.files[plan.file]
    if not plan.stripped or file_sha256(written) != expected.sha256:
        raise QwenImageError(
            f"{source / plan.file}: has {'weights' if not plan.stripped else 'other contents than its sha256 says'}; "
            f"expected a plan of --strip-weights, whole: have it built again with: qwen-image build {source}"
        )
    record_plan(folder, name, replace(plan, file=f"{PLANS}/{Path(plan.file).name}"), written, expected)
    return read_manifest(folder).plans[name]


def record_plan(folder: Path, name: str, plan: PlanEntry, written: Path, file: FileEntry) -> Manifest:
    """Give the plan its name and the manifest its entry; the plan that it replaces goes last.

    The manifest is read again: a build takes long, and `verify` may have written to it.
    """
    written.replace(folder / plan.file)
    manifest = read_manifest(folder)
    old = manifest.plans.get(name)
    files = {path: entry for path, entry in manifest.files.items() if old is None or path != old.file}
    files[plan.file] = file
    manifest = replace(manifest, files=files, plans={**manifest.plans, name: plan})
    write_manifest(folder, manifest)
    if old is not None and old.file != plan.file:
        (folder / old.file).unlink(missing_ok=True)
    return manifest
