"""The build of a bundle's plans: existing plans are reused, and each new plan is recorded in the manifest.

A component is recorded when its plan is complete. An interrupted build keeps the plans that it finished and leaves no
unfinished file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path

from qwen_image_engine.engines.core.graph.weight_bytes import weight_bytes
from qwen_image_engine.engines.cuda.driver import DeviceInfo, device_info
from qwen_image_engine.engines.plans.build_memory import build_memory_bytes, check_host_memory
from qwen_image_engine.engines.plans.entry import LAYERS, PLAN, PlanEntry, Profile
from qwen_image_engine.engines.tensorrt.build.job import BUILDER_REVISION, BuildJob, BuildOptions, BuildResult
from qwen_image_engine.engines.tensorrt.build.launch import Watch, run_build
from qwen_image_engine.runtime.bundle.bound_lists import bound_bytes, bound_count
from qwen_image_engine.runtime.bundle.files import describe_file
from qwen_image_engine.runtime.bundle.manifest import Manifest
from qwen_image_engine.runtime.bundle.manifest_entries import FileEntry
from qwen_image_engine.runtime.system.machine import reachable_memory_bytes, usable_cores
from qwen_image_engine.runtime.system.side_by_side import Check, side_by_side
from qwen_image_engine.runtime.tools.build.checks import check_disk, missing, weight_file_bytes
from qwen_image_engine.runtime.tools.build.plan_record import kept_plan, record_plan, take_plan
from qwen_image_engine.runtime.tools.build.plans_folder import PLANS, PlansFolder, plans_folder
from qwen_image_engine.runtime.tools.build.platform import Platform
from qwen_image_engine.runtime.tools.build.request import BuildRequest
from qwen_image_engine.runtime.tools.build.shapes import BuildShapes
from qwen_image_engine.runtime.tools.build.weight_hashes import WeightHashes

_KEY_LETTERS = 12

Run = Callable[[BuildJob, Watch], BuildResult]
"""A function that builds one engine, such as `run_build`."""

Announce = Callable[[str], Watch]
"""A function that is called with the name of each component to build and returns a watcher of the build's progress."""


@dataclass(frozen=True)
class Built:
    """Result for one component.

    Attributes:
        component: the component's name.
        entry: the plan's entry in the manifest.
        file: size and SHA-256 of the plan.
        reused: whether an existing plan was reused.
        missing: bytes by profile that the largest sizes of the profile take beyond the GPU's memory. Profiles that fit
            are left out.
        warnings: faults that do not concern the plan itself.
    """

    component: str
    entry: PlanEntry
    file: FileEntry
    reused: bool
    missing: Mapping[str, int]
    warnings: tuple[str, ...] = ()


def build_bundle(
    folder: Path,
    shapes: BuildShapes,
    options: BuildOptions,
    *,
    engine: str | None = None,
    compute_capabilities: Sequence[str] = (),
    only: Sequence[str] = (),
    timing_cache: Path | None = None,
    source: Path | None = None,
    begin: Callable[[Platform], None] = lambda platform: None,
    announce: Announce = lambda component: lambda words: None,
    device: Callable[[], DeviceInfo] = device_info,
    run: Run = run_build,
) -> list[Built]:
    """Build the plans that a bundle for TensorRT does not have yet.

    Args:
        folder: the bundle's folder.
        shapes: input shapes that the engines accept.
        options: build options of the engines.
        engine: name of the backend to build for, "tensorrt" or "tensorrt-rtx"; None for the installed one, and with
            both TensorRT if this machine has a GPU and no compute capability is named.
        compute_capabilities: compute capabilities to build for, of TensorRT for RTX alone; empty for its default, or
            for the one of this machine's GPU.
        only: names of the components to build; empty for every component that the shapes can need.
        timing_cache: file for timings of kernels; None for a file in the plans folder, named after the platform.
        source: another bundle, or a folder with its manifest and plans alone. Its plans without weights, or with bound
            ones, are reused if their keys match.
        begin: called with the platform once every check is done.
        announce: called with the name of each component before its build.
        device: function that asks the driver for the GPU's facts.
        run: function that builds one engine.

    Raises:
        UsageError: the bundle is not for TensorRT, has no component of a name in `only`, or has no components for
            reference images and `shapes` asks for some; `timing_cache` cannot be written; or `source` has no plans, or
            is given for plans with weights; or options contradict each other.
        QwenImageError: the builder, or a driver or GPU that it needs, is missing or too old; a compute capability is
            too low for a graph; memory or the disk is too small; a build fails; or a built engine has less than its
            graph asks for.
    """
    request = BuildRequest.of(
        folder,
        shapes,
        options,
        engine=engine,
        compute_capabilities=compute_capabilities,
        only=only,
        timing_cache=timing_cache,
        source=source,
        device=device,
    )
    begin(request.platform)
    with plans_folder(folder) as plans:
        keys = {
            name: plan_key(plans.manifest, name, profiles, request.options_of(name), request.platform)
            for name, profiles in request.profiles.items()
        }
        hashes = WeightHashes(folder)
        kept = {name: _kept(request, plans, name, key) for name, key in keys.items()}
        pending = [name for name, plan in kept.items() if plan is None]
        most = _check_room(request, plans, pending)

        def work(name: str, check: Check) -> Built:
            return _built(request, plans, name, keys[name], hashes, _stoppable(announce(name), check), run)

        built = dict(zip(pending, side_by_side(work, pending, most), strict=True))
        return [
            Built(name, plan, plans.manifest.files[plan.file], True, _missing(request, plans, name, plan))
            if plan is not None
            else built[name]
            for name, plan in kept.items()
        ]


def _stoppable(watch: Watch, check: Check) -> Watch:
    def watched(words: str) -> None:
        check()
        watch(words)

    return watched


def _check_room(request: BuildRequest, plans: PlansFolder, pending: Sequence[str]) -> int:
    """Return how many of the plans may be built at a time: one a core, as memory has room.

    A builder that times kernels on the GPU builds alone.

    Raises:
        QwenImageError: memory or the disk is too small for the plans that are to be built; see `build_bundle`.
    """
    held, needed = {}, []
    free = reachable_memory_bytes() if request.device is None else None
    for name in pending:
        bound = request.bindable.get(name, ())
        count = bound_count(bound)
        inside = weight_bytes(request.folder / plans.manifest.components[name].model) - bound_bytes(bound)
        held[name] = inside if bound else weight_file_bytes(plans.manifest, name)
        if request.device is None:
            advise = request.options.weights == "inside"
            check_host_memory(name, inside, free, bound=count, advise_bound=advise)
            needed.append(build_memory_bytes(inside, count))
    if not request.options.strip_weights:
        check_disk(plans.path, held, request.options, request.platform.builder)
    largest = list(accumulate(sorted(needed, reverse=True)))
    return min(usable_cores(), sum(free is None or total <= free for total in largest))


def _kept(request: BuildRequest, plans: PlansFolder, name: str, key: str) -> PlanEntry | None:
    """Return the plan of this key, of the bundle itself or copied from the other bundle; None if there is none.

    Plans that hold weights are a bundle's own.
    """
    found = kept_plan(plans, name, key)
    bindable = request.bindable.get(name, ())
    if found is not None and tuple(weight.without_hash for weight in found.bound) != bindable:
        found = None  # the key is the same, so the manifest was changed
    if found is None and request.source is not None and (bindable or request.options.strip_weights):
        found = take_plan(plans, request.source, name, key, bindable)
    return found


def _missing(request: BuildRequest, plans: PlansFolder, name: str, plan: PlanEntry) -> Mapping[str, int]:
    return missing(plans.manifest, name, plan, request.device)


def _built(
    request: BuildRequest,
    plans: PlansFolder,
    name: str,
    key: str,
    hashes: WeightHashes,
    watch: Watch,
    run: Run,
) -> Built:
    """Build the plan of a component and record it."""
    job = _job(request, plans, name, key)
    layers = Path(job.layers)
    layers.unlink(missing_ok=True)
    bound = hashes.hashed(request.bindable.get(name, ()), watch)
    result = run(job, watch)
    plan, file = replace(_entry(request, name, key, result), bound=bound), FileEntry(result.bytes, result.sha256)
    record_plan(plans, name, plan, Path(job.plan), file, describe_file(layers))
    return Built(name, plan, file, False, _missing(request, plans, name, plan), result.warnings)


def _job(request: BuildRequest, plans: PlansFolder, name: str, key: str) -> BuildJob:
    entry, platform = plans.manifest.components[name], request.platform
    timings = None
    if platform.gpu is not None:  # a builder without a GPU times nothing
        timings = str((request.timing_cache or plans.path / f"{platform.slug}.timing").absolute())
    return BuildJob(
        component=name,
        builder=platform.builder,
        compute_capabilities=platform.compute_capabilities if platform.gpu is None else (),
        model=str((request.folder / entry.model).absolute()),
        plan=str((plans.path / f".{name}.partial").absolute()),
        timing_cache=timings,
        profiles=request.profiles[name],
        options=request.options_of(name),
        promise=request.promises[name],
        softmax_scale=entry.softmax_scale,
        layers=str((plans.bundle / f"{_stem(name, key)}{LAYERS}").absolute()),
    )


def _entry(request: BuildRequest, name: str, key: str, result: BuildResult) -> PlanEntry:
    return PlanEntry(
        file=f"{_stem(name, key)}{PLAN}",
        key=key,
        **asdict(request.platform),
        profiles=request.profiles[name],
        stripped=request.options.strip_weights,
        weight_streaming=request.options.weight_streaming,
        scratch_bytes=result.scratch_bytes,
        fused_attentions=result.fused_attentions,
        fp8_products=result.fp8_products,
        int8_products=result.int8_products,
        layers=f"{_stem(name, key)}{LAYERS}",
    )


def _stem(name: str, key: str) -> str:
    """Return the path in the bundle of a plan and its account, without suffixes."""
    return f"{PLANS}/{name}-{key[:_KEY_LETTERS]}"


def plan_key(
    manifest: Manifest, component: str, profiles: Sequence[Profile], options: BuildOptions, platform: Platform
) -> str:
    """Return the SHA-256 of everything that a plan is made from. Equal keys mean equal engines."""
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
