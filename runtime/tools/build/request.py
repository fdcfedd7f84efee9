"""The request for a bundle's engines: everything that a build needs, read and checked before it starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from qwen_image_engine.engines.core.components import FOR_REFERENCE_IMAGES
from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.engines.cuda.driver import DeviceInfo
from qwen_image_engine.engines.plans.bound_weight import BoundWeight
from qwen_image_engine.engines.plans.entry import Profile
from qwen_image_engine.engines.tensorrt.build.job import BuildOptions, ExpectedFusions
from qwen_image_engine.engines.tensorrt.package import TENSORRT_RTX, Product
from qwen_image_engine.runtime.bundle.bound_lists import bindable_weights
from qwen_image_engine.runtime.bundle.files import check_files, check_graphs
from qwen_image_engine.runtime.bundle.manifest import Manifest, read_manifest
from qwen_image_engine.runtime.bundle.manifest_entries import ComponentEntry
from qwen_image_engine.runtime.text.tokenizer import load_tokenizer
from qwen_image_engine.runtime.tools.build.checks import check_capabilities, check_gpu, check_timing_cache
from qwen_image_engine.runtime.tools.build.plan_record import PlanSource
from qwen_image_engine.runtime.tools.build.platform import (
    Platform,
    builder_version,
    choose_builder,
    chosen_capabilities,
)
from qwen_image_engine.runtime.tools.build.shapes import DEFAULT_REFERENCES, BuildShapes, Template, build_profiles


@dataclass(frozen=True)
class BuildRequest:
    """The request to build engines, after every check of the bundle and of the GPU.

    Attributes:
        folder: the bundle's folder.
        options: build options of every engine, with the place of weights decided.
        bindable: weights that are to be inputs of a plan, without hashes, by component to build; none if weights are to
            be inside plans.
        profiles: optimisation profiles by component to build, in the order of the manifest.
        promises: expected fusions and 8-bit products by component to build.
        platform: builder and GPUs.
        device: facts of the GPU; None if the builder needs none.
        timing_cache: file for timings of kernels; None for a file in the plans folder, or none at all.
        source: another bundle to copy plans from; None to build every plan.
    """

    folder: Path
    options: BuildOptions
    bindable: Mapping[str, tuple[BoundWeight, ...]]
    profiles: Mapping[str, tuple[Profile, ...]]
    promises: Mapping[str, ExpectedFusions]
    platform: Platform
    device: DeviceInfo | None
    timing_cache: Path | None
    source: PlanSource | None

    @classmethod
    def of(
        cls,
        folder: Path,
        shapes: BuildShapes,
        options: BuildOptions,
        *,
        engine: str | None,
        compute_capabilities: Sequence[str],
        only: Sequence[str],
        timing_cache: Path | None,
        source: Path | None,
        device: Callable[[], DeviceInfo],
    ) -> Self:
        """Read the manifest and make every check that is possible before a build; see `build_bundle`.

        Raises:
            UsageError: the bundle is not for TensorRT, has no component of a name in `only`, or has no components for
                reference images and `shapes` asks for some; `timing_cache` cannot be written; `source` has no plans,
                or is given for plans with weights; options contradict each other; or the builder does not take an
                option or a compute capability.
            QwenImageError: a file of the bundle does not match its manifest; a graph holds something that no export
                holds; the builder, or a driver or GPU that it needs, is missing or too old; a compute capability is
                too low for the graph's precision; or memory is too small.
        """
        manifest = read_manifest(folder)
        shapes = _without_absent(folder, manifest, shapes)
        names = _components(folder, manifest, shapes, only)
        product = choose_builder(engine, bool(compute_capabilities), device)
        options = with_place_of_weights(options, product)
        if product == TENSORRT_RTX:
            _check_rtx_options(options, timing_cache)
        elif compute_capabilities:
            raise UsageError(
                "--gpu and --compute-capability: TensorRT builds for the GPU of this machine alone; for other cards "
                "build with --engine tensorrt-rtx"
            )
        if timing_cache is not None:
            check_timing_cache(timing_cache)
        plans = None if source is None else _plan_source(source, options)
        promises = {name: promise(manifest.components[name]) for name in names}
        # A damaged plan is no reason to refuse: it is built again.
        check_files(folder, manifest, [name for name in manifest.files if name not in manifest.plan_files])
        check_graphs(folder, manifest, names)
        template = Template.of(load_tokenizer(folder), shapes.references.largest)
        platform, facts = _platform(product, manifest, names, compute_capabilities, device)
        halo = manifest.facts.decoder_halo
        profiles = {
            name: build_profiles(entry.contract, shapes, template, halo, fp8_attention=bool(entry.fp8_attention))
            for name, entry in manifest.components.items()
            if name in names
        }
        bound = names if options.weights == "bound" else ()
        bindable = {name: bindable_weights(folder, manifest.components[name].model) for name in bound}
        for name in names:
            if facts is None:
                check_capabilities(name, manifest, platform.compute_capabilities)
            else:
                check_gpu(name, manifest, profiles[name], options, facts)
        return cls(folder, options, bindable, profiles, promises, platform, facts, timing_cache, plans)

    def options_of(self, name: str) -> BuildOptions:
        """Return the options of a component's plan. A plan whose weights all stay inside is the same in both ways."""
        return self.options if self.bindable.get(name) else replace(self.options, weights="inside")


def with_place_of_weights(options: BuildOptions, product: Product) -> BuildOptions:
    """Return options with the place of weights decided: bound for TensorRT for RTX, except to stream them.

    Raises:
        UsageError: options contradict each other.
    """
    if options.weights is None:
        bound = product == TENSORRT_RTX and not options.weight_streaming and not options.strip_weights
        return replace(options, weights="bound" if bound else "inside")
    if options.weights == "bound" and options.strip_weights:
        raise UsageError(
            "--weights bound with --strip-weights: a plan with bound weights holds none that could be left out; build "
            "without --strip-weights"
        )
    if options.weights == "bound" and options.weight_streaming:
        raise UsageError(
            "--weights bound with --weight-streaming: weights that are inputs of a plan lie on the device, only those "
            "inside are streamed; build with --weights inside"
        )
    return options


def _platform(
    product: Product,
    manifest: Manifest,
    names: Sequence[str],
    compute_capabilities: Sequence[str],
    device: Callable[[], DeviceInfo],
) -> tuple[Platform, DeviceInfo | None]:
    version = builder_version(product)
    if product.needs_gpu:
        facts = device()
        return Platform.of_device(version, facts), facts
    least = max((manifest.components[name].least_compute_capability or 0 for name in names), default=None)
    return Platform(product.engine, version, chosen_capabilities(compute_capabilities, least)), None


def _check_rtx_options(options: BuildOptions, timing_cache: Path | None) -> None:
    """Raise if an option is not for TensorRT for RTX.

    Raises:
        UsageError: a plan without weights that is refitted, or a file of timings is asked for.
    """
    if options.strip_weights:
        raise UsageError(
            "--strip-weights with --engine tensorrt-rtx: it cannot leave weights out of a plan without a GPU; build "
            "with --weights bound, whose plans take them as inputs"
        )
    if timing_cache is not None:
        raise UsageError(
            f"--timing-cache {timing_cache} with --engine tensorrt-rtx: it times nothing when it builds; build "
            "without it"
        )


def promise(entry: ComponentEntry) -> ExpectedFusions:
    """Return the fused attentions and 8-bit products that the graph of a component asks of its engine.

    Raises:
        QwenImageError: the manifest does not list the attentions that must be fused.
    """
    if entry.fused_attentions is None:
        raise QwenImageError(
            f"{entry.contract.component}: the manifest does not name the attentions that its engine must fuse, so an "
            "older version made it; export the bundle again"
        )
    precisions = [layer.precision for layer in entry.quantised_layers.values()]
    return ExpectedFusions(
        precisions.count("fp8"), precisions.count("int8"), len(entry.fp8_attention), entry.fused_attentions
    )


def _without_absent(folder: Path, manifest: Manifest, shapes: BuildShapes) -> BuildShapes:
    """Return the shapes, with no reference images if the bundle has no components for them.

    Raises:
        UsageError: the bundle is not for TensorRT, or it has no components for reference images and the shapes ask for
            another number of them than the default.
    """
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


def _plan_source(source: Path, options: BuildOptions) -> PlanSource:
    if not options.strip_weights and options.weights != "bound":
        raise UsageError(
            f"--from {source} without --strip-weights or --weights bound: plans with weights are a bundle's own"
        )
    manifest = read_manifest(source)
    if not manifest.plans:
        raise UsageError(
            f"--from {source}: its manifest lists no plans; expected a bundle, or its manifest and plans, that was "
            "built with the same flags"
        )
    return PlanSource(source, manifest)


def _components(folder: Path, manifest: Manifest, shapes: BuildShapes, only: Sequence[str]) -> list[str]:
    """Return the names of the components to build.

    Raises:
        UsageError: `only` has a name that is not in the manifest, or a component for reference images although the
            shapes have none.
    """
    unknown = [name for name in only if name not in manifest.components]
    if unknown:
        raise UsageError(f"--only {','.join(unknown)}: {folder} has {', '.join(manifest.components)}")
    idle = FOR_REFERENCE_IMAGES if shapes.references.largest == 0 else ()
    refused = [name for name in only if name in idle]
    if refused:
        raise UsageError(f"--only {','.join(refused)} with --references 0: that reads reference images")
    return [name for name in manifest.components if name not in idle and (not only or name in only)]
