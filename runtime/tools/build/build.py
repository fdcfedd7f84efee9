"""Engines for a bundle: which are wanted, which are there already, and the manifest's account of each new one.

A component is recorded when its plan is complete: an interrupted build keeps what it finished, and leaves no file that
is not.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from qwen_image_engine.engines.core.components import FOR_REFERENCE_IMAGES
from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.engines.cuda.driver import DeviceFacts, device_facts
from qwen_image_engine.engines.plans.entry import PlanEntry, Profile
from qwen_image_engine.engines.tensorrt.build.job import BUILDER_REVISION, BuildJob, BuildOptions, BuildResult, Promise
from qwen_image_engine.engines.tensorrt.build.launch import Watch, run_build
from qwen_image_engine.runtime.bundle.files import check_files
from qwen_image_engine.runtime.bundle.manifest import ComponentEntry, FileEntry, Manifest, read_manifest
from qwen_image_engine.runtime.text.tokenizer import load_tokenizer
from qwen_image_engine.runtime.tools.build.checks import check_disk, check_gpu, check_timing_cache, missing
from qwen_image_engine.runtime.tools.build.plan_record import kept_plan, record_plan, take_plan
from qwen_image_engine.runtime.tools.build.plans_folder import LAYERS, PLANS, plans_folder
from qwen_image_engine.runtime.tools.build.shapes import DEFAULT_REFERENCES, BuildShapes, Template, build_profiles

_KEY_LETTERS = 12

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

    `missing` has the profiles whose largest sizes take more than all of its memory, and how many bytes more. `warnings`
    are what went wrong beside the plan.
    """

    component: str
    entry: PlanEntry
    reused: bool
    missing: Mapping[str, int]
    warnings: tuple[str, ...] = ()


def build_bundle(
    folder: Path,
    shapes: BuildShapes,
    options: BuildOptions,
    *,
    only: Sequence[str] = (),
    timing_cache: Path | None = None,
    source: Path | None = None,
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
        source: another bundle, or its manifest and plans alone; plans without weights in it that are what would be
            built are taken.
        announce: told of each component.
        device: asks the driver.
        run: builds one.

    Raises:
        UsageError: the bundle is not for TensorRT or has no such component, or takes no reference images and they are
            asked for; or `timing_cache` can be no file, or `source` has no plans or goes without
            `options.strip_weights`.
        QwenImageError: TensorRT, driver or GPU are missing or too old, memory or disk are too small, a build fails, or
            an engine has less than its graph promises.
    """
    manifest = read_manifest(folder)
    shapes = _without_absent(folder, manifest, shapes)
    names = _wanted(folder, manifest, shapes, only)
    if timing_cache is not None:
        check_timing_cache(timing_cache)
    if source is not None:
        _check_source(source, options)
    promises = {name: promise(manifest.components[name]) for name in names}
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
        check_gpu(name, manifest, profiles[name], options, facts)
    with plans_folder(folder) as plans:
        manifest = read_manifest(folder)  # another build may have ended since
        timings = timing_cache or plans / f"{_slug(platform)}.timing"
        built = []
        for name in names:
            entry = manifest.components[name]
            key = plan_key(manifest, name, profiles[name], options, platform)
            kept = kept_plan(folder, manifest, name, key)
            if kept is None and source is not None:
                kept = take_plan(folder, source, name, key)
            if kept is not None:
                manifest = read_manifest(folder)
                built.append(Built(name, kept, True, missing(manifest, name, kept, facts)))
                continue
            check_disk(plans, manifest, name, options)
            layers = (plans / f"{name}{LAYERS}").absolute()
            job = BuildJob(
                component=name,
                model=str((folder / entry.model).absolute()),
                plan=str((plans / f".{name}.partial").absolute()),
                timing_cache=str(timings.absolute()),
                profiles=profiles[name],
                options=options,
                promise=promises[name],
                softmax_scale=entry.softmax_scale,
                layers=str(layers),
            )
            layers.unlink(missing_ok=True)
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
            manifest = record_plan(folder, name, plan, Path(job.plan), FileEntry(result.bytes, result.sha256))
            built.append(Built(name, plan, False, missing(manifest, name, plan, facts), result.warnings))
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
        "builder": BUILDER_REVISION,
        "graph": manifest.files[entry.model].sha256,
        "weights": [manifest.files[name].sha256 for name in entry.weights],
        "softmax": entry.softmax_scale,
        "profiles": [asdict(item) for item in profiles],
        "options": asdict(options),
        "platform": asdict(platform),
    }
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


def promise(entry: ComponentEntry) -> Promise:
    """What the graph of a component says of its engine.

    Raises:
        QwenImageError: the manifest does not say which attentions must be fused.
    """
    if entry.fused_attentions is None:
        raise QwenImageError(
            f"{entry.contract.component}: the manifest does not name the attentions that its engine must fuse, so an "
            "older version made it; export the bundle again"
        )
    precisions = [layer.precision for layer in entry.quantised_layers.values()]
    return Promise(precisions.count("fp8"), precisions.count("int8"), len(entry.fp8_attention), entry.fused_attentions)


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


def _check_source(source: Path, options: BuildOptions) -> None:
    if not options.strip_weights:
        raise UsageError(f"--from {source} without --strip-weights: plans with weights are a bundle's own")
    if not read_manifest(source).plans:
        raise UsageError(
            f"--from {source}: its manifest lists no plans; expected a bundle, or its manifest and plans, that was "
            "built with --strip-weights"
        )


def _wanted(folder: Path, manifest: Manifest, shapes: BuildShapes, only: Sequence[str]) -> list[str]:
    unknown = [name for name in only if name not in manifest.components]
    if unknown:
        raise UsageError(f"--only {','.join(unknown)}: {folder} has {', '.join(manifest.components)}")
    idle = FOR_REFERENCE_IMAGES if shapes.references.largest == 0 else ()
    refused = [name for name in only if name in idle]
    if refused:
        raise UsageError(f"--only {','.join(refused)} with --references 0: that reads reference images")
    return [name for name in manifest.components if name not in idle and (not only or name in only)]


def _slug(platform: Platform) -> str:
    """The platform as a file's name."""
    words = (f"tensorrt {platform.tensorrt}", platform.gpu, f"sm {platform.compute_capability}", str(platform.driver))
    return re.sub(r"[^a-z0-9.]+", "-", " ".join(words).lower())
