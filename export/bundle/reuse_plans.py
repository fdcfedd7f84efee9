"""Engines of the bundle that an export replaces, kept where graph and weights of a component are the same.

A build takes minutes and a GPU, which the machine that exports may not have. Whether a kept engine still is what a
build would make (shapes, options, TensorRT, GPU) is `qwen-image build`'s to say, by its key.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

from qwen_image_engine.runtime.bundle.manifest import Manifest


def keep_plans(previous: Manifest, old: Path, manifest: Manifest, folder: Path) -> Manifest:
    """Put the engines of the bundle `old` that `manifest` may keep into `folder`, with timings of kernels.

    They are not read: whoever loads an engine compares it with its SHA-256.

    Returns:
        The manifest with their entries.

    Raises:
        OSError: one can neither be linked nor copied.
    """
    kept = {
        name: plan
        for name, plan in previous.plans.items()
        if (old / plan.file).is_file() and _same(name, previous, manifest)
    }
    places = {Path(plan.file).parent for plan in previous.plans.values()}
    timings = [path.relative_to(old) for place in places for path in (old / place).glob("*.timing")]
    for name in [*(Path(plan.file) for plan in kept.values()), *timings]:
        (folder / name).parent.mkdir(exist_ok=True)
        try:
            os.link(old / name, folder / name)
        except OSError:
            shutil.copyfile(old / name, folder / name)
    files = {plan.file: previous.files[plan.file] for plan in kept.values()}
    return replace(manifest, files={**manifest.files, **files}, plans=kept)


def _same(name: str, previous: Manifest, manifest: Manifest) -> bool:
    """Whether a component's entry, graph and weights are what they were."""
    entry = manifest.components.get(name)
    if entry is None or entry != previous.components[name]:
        return False
    return all(manifest.files[file] == previous.files[file] for file in (entry.model, *entry.weights))
