"""Checks before the build of an engine: the GPUs' age and memory, free disk space, and the timing cache's file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.engines.core.files import is_stream
from qwen_image_engine.engines.cuda.driver import DeviceInfo
from qwen_image_engine.engines.plans.entry import PlanEntry, Profile
from qwen_image_engine.engines.plans.memory import missing_bytes
from qwen_image_engine.engines.tensorrt.build.job import BuildOptions
from qwen_image_engine.runtime.bundle.capability import check_capability
from qwen_image_engine.runtime.bundle.manifest import Manifest
from qwen_image_engine.runtime.system.files import no_folder

ROOM = (
    "build for less (--profile, --references, --prompt-tokens, --batch) or with --weight-streaming, or export with "
    "--precision fp8 or int8"
)
"""The remedies in an error's text if a GPU's memory is too small."""


def check_timing_cache(path: Path) -> None:
    """Raise if the timing cache cannot be written. TensorRT writes it only after minutes of building.

    Raises:
        UsageError: `path` is a folder, a pipe or a device, its parent folder is missing or not writable, or an existing
            file at `path` is not readable.
    """
    if path.is_dir():
        raise UsageError(f"--timing-cache {path}: is a folder; name a file in it")
    if is_stream(path):
        raise UsageError(f"--timing-cache {path}: is a pipe or a device, expected a file; name another file")
    if not path.parent.is_dir():
        raise UsageError(f"--timing-cache {path}: {no_folder(path.parent)}")
    if not os.access(path.parent, os.W_OK | os.X_OK) or (path.exists() and not os.access(path, os.R_OK)):
        raise UsageError(f"--timing-cache {path}: cannot be read and written there; name another file")


def check_gpu(
    name: str, manifest: Manifest, profiles: Sequence[Profile], options: BuildOptions, facts: DeviceInfo
) -> None:
    """Raise if the GPU is too old for a graph or its free memory is too small for a profile.

    Raises:
        QwenImageError: the compute capability is too low for the graph's precision, or the weights, inputs and outputs
            of a profile's largest sizes do not fit into the GPU's free memory.
    """
    entry = manifest.components[name]
    check_capability(name, entry, facts, "bf16 or int8")
    weights = 0 if options.weight_streaming else weight_file_bytes(manifest, name)
    missing = missing_bytes(entry.contract, profiles, (), weights, facts.free_bytes)
    if missing:
        profile, most = max(missing.items(), key=lambda item: item[1])
        raise QwenImageError(
            f"{name}: its weights take {weights} bytes, inputs and outputs of the profile {profile} up to "
            f"{most + facts.free_bytes - weights}, activations aside, and {facts.free_bytes} of {facts.name}'s "
            f"{facts.total_bytes} bytes are free, {most} too few; free some, {ROOM}"
        )


def check_capabilities(name: str, manifest: Manifest, capabilities: Sequence[str]) -> None:
    """Raise if one of the compute capabilities to build for is too low for a graph.

    Raises:
        QwenImageError: a compute capability is too low for the graph's precision.
    """
    least = manifest.components[name].least_compute_capability
    refused = [item for item in capabilities if least is not None and float(item) < least]
    if refused:
        raise QwenImageError(
            f"{name}: its graph is in {manifest.precision}, which needs compute capability {least} or newer, and "
            f"{', '.join(refused)} is asked for; build without that, or export with another --precision"
        )


def missing(manifest: Manifest, name: str, plan: PlanEntry, facts: DeviceInfo | None) -> Mapping[str, int]:
    """Return the bytes by profile that the largest sizes take beyond the GPU's memory; profiles that fit are left out.

    The plan's scratch memory for activations counts here, because it is known after the build. Without a GPU nothing is
    known to be missing.
    """
    if facts is None:
        return {}
    weights = 0 if plan.weight_streaming else weight_file_bytes(manifest, name)
    contract = manifest.components[name].contract
    return missing_bytes(contract, plan.profiles, plan.scratch_bytes, weights, facts.total_bytes)


def check_disk(plans: Path, held: Mapping[str, int], options: BuildOptions, builder: str) -> None:
    """Raise if the disk has no room for plans, before the first is built.

    Args:
        plans: the plans folder.
        held: bytes of the weights inside each plan that is to be built, by component.
        options: build options of the plans.
        builder: name of the backend that builds them.

    Raises:
        QwenImageError: the weights in the plans take more bytes than are free in the plans folder.
    """
    needed = sum(held.values())
    free = shutil.disk_usage(plans).free
    if needed > free:
        way = "--weights bound or --strip-weights" if builder == "tensorrt" else "--weights bound"
        instead = "" if options.weights == "bound" else f", or build with {way}"
        raise QwenImageError(
            f"engines of {', '.join(held)} take about {needed} bytes and {free} are free in {plans}; free some, build "
            f"fewer with --only{instead}"
        )


def weight_file_bytes(manifest: Manifest, name: str) -> int:
    """Return the bytes of the weight files of a component, which are its network's."""
    return sum(manifest.files[file].bytes for file in manifest.components[name].weights)
