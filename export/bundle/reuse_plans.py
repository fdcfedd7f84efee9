"""Reuse of plans from the bundle that an export replaces, for components with the same graph and weights.

A build takes minutes and a GPU, which the machine that exports may not have. `qwen-image build` compares the key of a
reused plan to decide whether a build would make the same plan (shapes, options, TensorRT, GPU).
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

from qwen_image_engine.runtime.bundle.manifest import Manifest


def keep_plans(previous: Manifest, old: Path, manifest: Manifest, folder: Path) -> Manifest:
    """Link the plans of the bundle `old` that `manifest` may reuse into `folder`, with their kernels and timings.

    The files are not read: whoever loads a plan compares it with its SHA-256.

    Returns:
        The manifest with entries for the reused plans.

    Raises:
        OSError: a file can neither be linked nor copied.
    """
    kept = {
        name: found
        for name, plans in previous.plans.items()
        if _same(name, previous, manifest)
        and (found := tuple(plan for plan in plans if all((old / file).is_file() for file in plan.listed)))
    }
    listed = [file for plans in kept.values() for plan in plans for file in plan.listed]
    places = {Path(file).parent for file in previous.plan_files}
    timings = [path.relative_to(old) for place in places for path in (old / place).glob("*.timing")]
    stems = {Path(file).stem for file in listed}
    kernels = [
        path.relative_to(old)
        for place in places
        for path in (old / place).glob("*.jit")
        if path.name.partition(".")[0] in stems and path.is_file() and not path.is_symlink()
    ]
    for name in [*map(Path, listed), *timings, *kernels]:
        (folder / name).parent.mkdir(exist_ok=True)
        try:
            os.link(old / name, folder / name)
        except OSError:
            shutil.copyfile(old / name, folder / name)
    files = {file: previous.files[file] for file in listed}
    return replace(manifest, files={**manifest.files, **files}, plans=kept)


def _same(name: str, previous: Manifest, manifest: Manifest) -> bool:
    """Return whether a component's entry, graph and weights are unchanged."""
    entry = manifest.components.get(name)
    if entry is None or entry != previous.components[name]:
        return False
    return all(manifest.files[file] == previous.files[file] for file in (entry.model, *entry.weights))
