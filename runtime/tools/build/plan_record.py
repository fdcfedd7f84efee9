"""The plans in a manifest: find an existing plan, copy a plan from another bundle, and record a new plan."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.plans.bound_weight import BoundWeight
from qwen_image_engine.engines.plans.entry import PlanEntry
from qwen_image_engine.runtime.bundle.files import check_files, describe_file
from qwen_image_engine.runtime.bundle.manifest import Manifest, read_manifest, write_manifest
from qwen_image_engine.runtime.bundle.manifest_entries import FileEntry
from qwen_image_engine.runtime.system.files import file_sha256
from qwen_image_engine.runtime.system.text import command_line
from qwen_image_engine.runtime.tools.build.plans_folder import PLANS, PlansFolder


@dataclass(frozen=True)
class PlanSource:
    """A bundle to copy plans from: whole, or its manifest and plans alone.

    Plans without weights, or with bound ones, can be shared without the bundle's other files.
    """

    folder: Path
    manifest: Manifest


def kept_plan(plans: PlansFolder, name: str, key: str) -> PlanEntry | None:
    """Return the existing plan of a component with this key, or None if there is none whose files are as recorded."""
    entry = _with_key(plans.manifest, name, key)
    whole = entry is not None and all(_is_whole(plans, file) for file in entry.listed)
    return entry if whole else None


def _with_key(manifest: Manifest, name: str, key: str) -> PlanEntry | None:
    return next((plan for plan in manifest.plans.get(name, ()) if plan.key == key), None)


def _is_whole(plans: PlansFolder, name: str) -> bool:
    path = plans.bundle / name
    return path.is_file() and file_sha256(path) == plans.manifest.files[name].sha256


def take_plan(
    plans: PlansFolder, source: PlanSource, name: str, key: str, bindable: Sequence[BoundWeight] = ()
) -> PlanEntry | None:
    """Copy the plan with this key from another bundle and record it. Return None if that bundle has no such plan.

    The key includes the hashes of graph and weights, so a plan with this key is built from the same graph and weights.

    Args:
        plans: the plans folder of this bundle.
        source: the other bundle.
        name: name of the component.
        key: key of the plan.
        bindable: weights that the plan takes as inputs, without hashes; none for a plan of `--strip-weights`.

    Raises:
        QwenImageError: the plan cannot be copied, contains weights, takes other weights as inputs, or does not have the
            SHA-256 that its manifest lists.
    """
    plan = _with_key(source.manifest, name, key)
    if plan is None:
        return None
    if tuple(weight.without_hash for weight in plan.bound) != tuple(bindable):
        raise QwenImageError(
            f"{source.folder}: the bound weights of its plan of {name} are those of another graph, though the plan's "
            "key is the one of this; get it again, or build without --from"
        )
    path = source.folder / plan.file
    check_files(source.folder, source.manifest, plan.listed)
    written = plans.path / f".{name}.partial"
    _copy(path, written)
    expected = source.manifest.files[plan.file]
    holds_none = plan.stripped or bool(plan.bound)
    if not holds_none or file_sha256(written) != expected.sha256:
        flags = ("--weights", "bound") if bindable else ("--strip-weights",)
        rebuild = command_line("qwen-image", "build", source.folder, *flags)
        raise QwenImageError(
            f"{path}: has {'other contents than its sha256 says' if holds_none else 'weights'}; "
            f"expected a plan of {' '.join(flags)}, whole: have it built again with: {rebuild}"
        )
    taken, layers = replace(plan, file=f"{PLANS}/{path.name}"), None
    if plan.layers is not None:
        taken = replace(taken, layers=f"{PLANS}/{Path(plan.layers).name}")
        account = plans.path / f".{name}.layers.partial"
        _copy(source.folder / plan.layers, account)
        layers = describe_file(account)
        if layers != source.manifest.files[plan.layers]:
            raise QwenImageError(f"{source.folder / plan.layers}: other contents than its sha256 says; get it again")
        account.replace(plans.bundle / str(taken.layers))
    record_plan(plans, name, taken, written, expected, layers)
    return taken


def _copy(path: Path, copy: Path) -> None:
    try:
        shutil.copyfile(path, copy)
    except OSError as error:
        raise QwenImageError(f"{path}: cannot be copied ({error.strerror or error})") from error


def record_plan(
    plans: PlansFolder, name: str, plan: PlanEntry, written: Path, file: FileEntry, layers: FileEntry | None = None
) -> None:
    """Rename the written plan to its final name, record it in the manifest, and then delete the plan that it replaces.

    A plan replaces the one of the same builder and compute capabilities, and no other. The manifest is read again,
    because `verify` may have written to it during the build.
    """
    with plans.recording:
        written.replace(plans.bundle / plan.file)
        manifest = read_manifest(plans.bundle)
        others = tuple(item for item in manifest.plans.get(name, ()) if item.place != plan.place)
        replaced = replace(manifest, plans={**manifest.plans, name: (*others, plan)})
        gone = manifest.plan_files - replaced.plan_files
        files = {path: entry for path, entry in manifest.files.items() if path not in gone}
        files[plan.file] = file
        if plan.layers is not None and layers is not None:
            files[plan.layers] = layers
        plans.manifest = replace(replaced, files=files)
        write_manifest(plans.bundle, plans.manifest)
        for path in gone:
            (plans.bundle / path).unlink(missing_ok=True)
