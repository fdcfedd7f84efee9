"""Engines for a bundle: which are wanted, which are there already, and the manifest's account of each new one.

A component is recorded when its plan is complete: an interrupted build keeps what it finished, and leaves no file that
is not.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from qwen_image_engine.engines.build_job import BuildJob, BuildOptions, BuildResult, Promise
from qwen_image_engine.engines.build_process import Watch, run_build
from qwen_image_engine.engines.contract import FOR_REFERENCES
from qwen_image_engine.engines.cuda_driver import DeviceFacts, device_facts
from qwen_image_engine.engines.errors import QwenImageError, UsageError
from qwen_image_engine.engines.plan_entry import PlanEntry, Profile
from qwen_image_engine.engines.plan_memory import missing_bytes
from qwen_image_engine.runtime.build_shapes import DEFAULT_REFERENCES, BuildShapes, Template, build_profiles
from qwen_image_engine.runtime.bundle_files import check_files, file_sha256
from qwen_image_engine.runtime.manifest import ComponentEntry, FileEntry, Manifest, read_manifest, write_manifest
from qwen_image_engine.runtime.plans_folder import PLANS, plans_folder
from qwen_image_engine.runtime.tokenizer import load_tokenizer

_KEY_LETTERS = 12

ROOM = (
    "build for less (--profile, --references, --prompt-tokens, --batch) or with --weight-streaming, or export with "
    "--precision fp8 or int8"
)
"""What helps where a GPU's memory is too small."""

Run = Callable[[BuildJob, Watch], BuildResult]
"""Builds one engine: `run_build`."""

Announce = Callable[[str], Watch]
"""Told which component begins; gives what is told how it goes on."""


@dataclass(frozen=True)
class Platform:
    """What a plan is for: it runs with this TensorRT on this GPU alone."""

    tensorrt: str
    gpu: str
    compute_capability: str
    driver: int


@dataclass(frozen=True)
class Built:
    """One component: its entry in the manifest, whether the plan was there already, and what the GPU has not.

    `missing` has the profiles whose largest sizes take more than all of its memory, and how many bytes more.
    """

    component: str
    entry: PlanEntry
    reused: bool
    missing: Mapping[str, int]


def build_bundle(
    folder: Path,
    shapes: BuildShapes,
    options: BuildOptions,
    *,
    only: Sequence[str] = (),
    timing_cache: Path | None = None,
    announce: Announce = lambda component: lambda words: None,
    device: Callable[[], DeviceFacts] = device_facts,
    run: Run = run_build,
) -> list[Built]:
    """Build what of a bundle for TensorRT is not built already.

    Args:
        folder: the bundle.
        shapes: that the engines are to take.
        options: of the engines.
        only: components; none for all that the shapes can need.
        timing_cache: file for timings of kernels; None for one beside the plans, by platform.
        announce: told of each component.
        device: asks the driver.
        run: builds one.

    Raises:
        UsageError: the bundle is not for TensorRT or has no such component, or takes no reference images and they are
            asked for.
        QwenImageError: TensorRT, driver or GPU are missing or too old, memory or disk are too small, a build fails, or
            an engine has less than its graph promises.
    """
    manifest = read_manifest(folder)
    shapes = _without_absent(folder, manifest, shapes)
    names = _wanted(folder, manifest, shapes, only)
    # A damaged plan is no reason to refuse: it is built again.
    engines = {plan.file for plan in manifest.plans.values()}
    check_files(folder, manifest, [name for name in manifest.files if name not in engines])
    template = Template.of(load_tokenizer(folder), shapes.references.largest)
    tensorrt = tensorrt_version()
    facts = device()
    platform = Platform(tensorrt, facts.name, facts.compute_capability, facts.driver)
    halo = manifest.facts.decoder_halo
    profiles = {name: build_profiles(manifest.components[name].contract, shapes, template, halo) for name in names}
    for name in names:
        _check_gpu(name, manifest, profiles[name], options, facts)
    with plans_folder(folder) as plans:
        manifest = read_manifest(folder)  # another build may have ended since
        timings = timing_cache or plans / f"{_slug(platform)}.timing"
        built = []
        for name in names:
            entry = manifest.components[name]
            key = plan_key(manifest, name, profiles[name], options, platform)
            kept = _kept(folder, manifest, name, key)
            if kept is not None:
                built.append(Built(name, kept, True, _missing(manifest, name, kept, facts)))
                continue
            _check_disk(plans, manifest, name, options)
            job = BuildJob(
                component=name,
                model=str((folder / entry.model).absolute()),
                plan=str((plans / f".{name}.partial").absolute()),
                timing_cache=str(timings.absolute()),
                profiles=profiles[name],
                options=options,
                promise=promise(entry),
                softmax_scale=_softmax_scale(name, entry),
            )
            result = run(job, announce(name))
            plan = PlanEntry(
                file=f"{PLANS}/{name}-{key[:_KEY_LETTERS]}.plan",
                key=key,
                **asdict(platform),
                profiles=profiles[name],
                stripped=options.strip_weights,
                weight_streaming=options.weight_streaming,
                scratch_bytes=result.scratch_bytes,
                fused_attentions=result.fused_attentions,
                fp8_products=result.fp8_products,
                int8_products=result.int8_products,
            )
            manifest = _record(folder, name, plan, Path(job.plan), result)
            built.append(Built(name, plan, False, _missing(manifest, name, plan, facts)))
    return built


def tensorrt_version() -> str:
    """Of the installed package; it is not imported, which loads gigabytes of libraries.

    Raises:
        QwenImageError: it is not installed.
    """
    try:
        return version("tensorrt")
    except PackageNotFoundError:
        raise QwenImageError(
            "tensorrt is not installed; install it with: pip install 'qwen-image-engine[tensorrt]'"
        ) from None


def plan_key(
    manifest: Manifest, component: str, profiles: Sequence[Profile], options: BuildOptions, platform: Platform
) -> str:
    """SHA-256 of all that a plan is made from: equal keys, equal engines."""
    entry = manifest.components[component]
    made_from = {
        "graph": manifest.files[entry.model].sha256,
        "weights": [manifest.files[name].sha256 for name in entry.weights],
        "softmax": _softmax_scale(component, entry),
        "profiles": [asdict(item) for item in profiles],
        "options": asdict(options),
        "platform": asdict(platform),
    }
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


def promise(entry: ComponentEntry) -> Promise:
    """What the graph of a component says of its engine."""
    precisions = [layer.precision for layer in entry.quantised_layers.values()]
    return Promise(precisions.count("fp8"), precisions.count("int8"), len(entry.fp8_attention))


def _without_absent(folder: Path, manifest: Manifest, shapes: BuildShapes) -> BuildShapes:
    """No reference images for a bundle that takes none."""
    if manifest.target != "tensorrt":
        raise UsageError(
            f"{folder} is for {manifest.target}, and engines are built from graphs for TensorRT; export them with: "
            f"qwen-image export {manifest.flags} BUNDLE --target tensorrt --precision bf16"
        )
    if not manifest.absent_for_references or shapes.references.largest == 0:
        return shapes
    if shapes.references != DEFAULT_REFERENCES:
        raise UsageError(
            f"--references {shapes.references}: the bundle has no {' and no '.join(manifest.absent_for_references)}; "
            "export it again without --without, or build with --references 0"
        )
    return replace(shapes, references=replace(shapes.references, best=0, largest=0))


def _wanted(folder: Path, manifest: Manifest, shapes: BuildShapes, only: Sequence[str]) -> list[str]:
    unknown = [name for name in only if name not in manifest.components]
    if unknown:
        raise UsageError(f"--only {','.join(unknown)}: {folder} has {', '.join(manifest.components)}")
    idle = (*FOR_REFERENCES, "prefix_image") if shapes.references.largest == 0 else ()
    refused = [name for name in only if name in idle]
    if refused:
        raise UsageError(f"--only {','.join(refused)} with --references 0: that reads reference images")
    return [name for name in manifest.components if name not in idle and (not only or name in only)]


def _check_gpu(
    name: str, manifest: Manifest, profiles: Sequence[Profile], options: BuildOptions, facts: DeviceFacts
) -> None:
    entry = manifest.components[name]
    least = entry.least_compute_capability
    if least is not None and float(facts.compute_capability) < least:
        raise QwenImageError(
            f"{name}: its graph is in {entry.precision}, which needs a GPU of compute capability {least} or newer; "
            f"{facts.name} has {facts.compute_capability}. Export with --precision bf16 or int8"
        )
    weights = 0 if options.weight_streaming else _weight_bytes(manifest, name)
    missing = missing_bytes(entry.contract, profiles, (), weights, facts.free_bytes)
    if missing:
        profile, most = max(missing.items(), key=lambda item: item[1])
        raise QwenImageError(
            f"{name}: its weights take {weights} bytes, inputs and outputs of the profile {profile} up to "
            f"{most + facts.free_bytes - weights}, activations aside, and {facts.free_bytes} of {facts.name}'s "
            f"{facts.total_bytes} bytes are free, {most} too few; free some, {ROOM}"
        )


def _missing(manifest: Manifest, name: str, plan: PlanEntry, facts: DeviceFacts) -> Mapping[str, int]:
    """What the largest sizes take beyond all of the GPU's memory, now that the engine's activations are known."""
    weights = 0 if plan.weight_streaming else _weight_bytes(manifest, name)
    contract = manifest.components[name].contract
    return missing_bytes(contract, plan.profiles, plan.scratch_bytes, weights, facts.total_bytes)


def _check_disk(plans: Path, manifest: Manifest, name: str, options: BuildOptions) -> None:
    needed = 0 if options.strip_weights else _weight_bytes(manifest, name)
    free = shutil.disk_usage(plans).free
    if needed > free:
        raise QwenImageError(
            f"{name}: its engine takes about {needed} bytes and {free} are free in {plans}; free some, or build with "
            "--strip-weights"
        )


def _weight_bytes(manifest: Manifest, name: str) -> int:
    return sum(manifest.files[file].bytes for file in manifest.components[name].weights)


def _softmax_scale(name: str, entry: ComponentEntry) -> float | None:
    scales = {item.softmax for item in entry.fp8_attention.values()}
    if len(scales) > 1:
        raise QwenImageError(f"{name}: its blocks have {len(scales)} softmax scales, expected one; export again")
    return next(iter(scales), None)


def _kept(folder: Path, manifest: Manifest, name: str, key: str) -> PlanEntry | None:
    """The plan of this key that is there already, whole."""
    entry = manifest.plans.get(name)
    if entry is None or entry.key != key:
        return None
    path = folder / entry.file
    return entry if path.is_file() and file_sha256(path) == manifest.files[entry.file].sha256 else None


def _record(folder: Path, name: str, plan: PlanEntry, written: Path, result: BuildResult) -> Manifest:
    """Give the plan its name and the manifest its entry; the plan that it replaces goes last.

    The manifest is read again: a build takes long, and `verify` may have written to it.
    """
    written.replace(folder / plan.file)
    manifest = read_manifest(folder)
    old = manifest.plans.get(name)
    files = {file: entry for file, entry in manifest.files.items() if old is None or file != old.file}
    files[plan.file] = FileEntry(result.bytes, result.sha256)
    manifest = replace(manifest, files=files, plans={**manifest.plans, name: plan})
    write_manifest(folder, manifest)
    if old is not None and old.file != plan.file:
        (folder / old.file).unlink(missing_ok=True)
    return manifest


def _slug(platform: Platform) -> str:
    """The platform as a file's name."""
    words = (f"tensorrt {platform.tensorrt}", platform.gpu, f"sm {platform.compute_capability}", str(platform.driver))
    return re.sub(r"[^a-z0-9.]+", "-", " ".join(words).lower())
