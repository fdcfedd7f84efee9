"""Exported graphs through the whole build: real inputs against profiles, real nodes against the audit.

TensorRT is played (`played_builder`); graphs, manifest, profiles and every call's form are real.
"""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from qwen_image_engine.engines.cuda.driver import DeviceInfo
from qwen_image_engine.engines.plans.entry import Shape
from qwen_image_engine.engines.plans.profile import Range
from qwen_image_engine.engines.plans.profile_choice import choose_profile
from qwen_image_engine.engines.tensorrt.build.job import BuildJob, BuildOptions, BuildResult
from qwen_image_engine.engines.tensorrt.build.launch import Watch
from qwen_image_engine.export.bundle.bundle import export_bundle
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.pipeline import reference_pipeline
from qwen_image_engine.runtime.bundle.manifest import Manifest, read_manifest
from qwen_image_engine.runtime.component_pool import ComponentPool
from qwen_image_engine.runtime.tools.build.build import build_bundle
from qwen_image_engine.runtime.tools.build.shapes import BuildShapes
from tests.support.builders import install_builders
from tests.support.fake_tensorrt import FakeTensorRT, forget_modules
from tests.support.images import patches
from tests.support.played_builder import PlayedBuilder
from tests.support.single_file import write_single_file

Bundles = Callable[..., tuple[Path, Path]]
Build = Callable[..., Manifest]

GPU = DeviceInfo("A GPU", "9.0", 13000, total_bytes=80 << 30, free_bytes=79 << 30)
SHAPES = BuildShapes(
    sizes=((96, 64), (160, 160)), references=Range(0, 1, 2), reference_resolution=288, batch=Range(1, 1, 2)
)
REQUESTS: tuple[dict[str, Any], ...] = (
    {"prompt": "", "width": 32, "height": 32},
    {"prompt": "a red circle " * 40, "width": 96, "height": 64, "num_images": 2},
    {"prompt": "make it blue", "width": 160, "height": 128, "references": [patches(200, 101)]},
    {"prompt": "蓝色", "width": 128, "height": 96, "references": [patches(60, 110), patches(90, 90, "RGB", 1)]},
)


@pytest.fixture
def build(tensorrt_stub: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Build]:
    """`build(folder)`: the manifest after it; the graphs are parsed and built by a TensorRT that is played."""
    fake = FakeTensorRT(tensorrt_stub)
    played = PlayedBuilder(fake)
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    install_builders(monkeypatch, tensorrt="11.4.0.106")
    forget_modules()
    builder = importlib.import_module("qwen_image_engine.engines.tensorrt.build.builder")

    def run(job: BuildJob, watch: Watch) -> BuildResult:
        result: BuildResult = builder.build(BuildJob.from_json(job.to_json()), lambda *words: True)
        if job.options.strip_weights:
            assert played.stored
            assert played.left_out == played.stored
            assert result.warnings == ()
        return result

    def built(folder: Path, strip_weights: bool = False) -> Manifest:
        build_bundle(folder, SHAPES, BuildOptions(strip_weights), device=lambda: GPU, run=run)
        return read_manifest(folder)

    yield built
    forget_modules()


def requested(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Mapping[str, Shape]]]:
    """Every component's calls, by the shapes of their inputs, in real requests to the reference."""
    seen: list[tuple[str, Mapping[str, Shape]]] = []
    run = ComponentPool.run

    def watched(components: ComponentPool, component: str, inputs: Mapping[str, Any]) -> Any:
        seen.append((component, {name: tuple(values.shape) for name, values in inputs.items()}))
        return run(components, component, inputs)

    monkeypatch.setattr(ComponentPool, "run", watched)
    with reference_pipeline(checkpoint) as pipeline:
        for request in REQUESTS:
            pipeline.generate(**request, steps=2, reference_resolution=288)
    return seen


def check_profiles(manifest: Manifest, calls: list[tuple[str, Mapping[str, Shape]]]) -> None:
    """Each call has a profile, and each component a call."""
    for component, shapes in calls:
        (plan,) = manifest.plans[component]
        choose_profile(manifest.components[component].contract, plan.profiles, shapes, "qwen-image build")
    assert {component for component, _ in calls} == set(manifest.plans) == set(manifest.components)


@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8"])
def test_a_bundle_is_built_as_its_graphs_are(
    static_bundle: Bundles,
    build: Build,
    precision: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {"fp8_attention": True} if precision == "fp8" else {}
    checkpoint, exported = static_bundle("narrow", "tensorrt", precision, **options)
    # Without the engines that another test may have left.
    folder = Path(shutil.copytree(exported, tmp_path / "bundle", ignore=shutil.ignore_patterns("plans")))
    manifest = build(folder)
    check_profiles(manifest, requested(Checkpoint.open(checkpoint), monkeypatch))
    layers = Checkpoint.open(checkpoint).transformer.num_layers
    for name, entry in manifest.components.items():
        found, quantised = manifest.plans[name][0], len(entry.quantised_layers)
        assert (found.fp8_products, found.int8_products) == {
            "bf16": (0, 0),
            "fp8": (quantised, 0),
            "int8": (0, quantised),
        }[precision], name
    assert all(
        manifest.plans[name][0].fused_attentions == len(entry.fused_attentions or ())
        for name, entry in manifest.components.items()
    )
    # Of a prefix's last layer keys and values are enough; of an image's, the text behind it has a mask.
    fused = {name: manifest.plans[name][0].fused_attentions for name in ("step", "prefix", "prefix_image")}
    assert fused == {"step": layers, "prefix": layers - 1, "prefix_image": layers - 1}
    assert all(len(plan.scratch_bytes) == len(plan.profiles) for (plan,) in manifest.plans.values())
    assert bool(manifest.components["step"].quantised_layers) == (precision != "bf16")
    assert all(plan.stripped for (plan,) in build(folder, strip_weights=True).plans.values())


def test_plans_without_weights_that_have_other_names_in_their_file(
    random_checkpoint: Callable[..., Path], build: Build, tmp_path: Path
) -> None:
    """A single file names and stacks them as ComfyUI does; `build` compares what is left out with the graph's own."""
    folder = random_checkpoint(dtype="bfloat16")
    checkpoint = Checkpoint.open(folder, transformer_file=write_single_file(folder, tmp_path / "one.safetensors"))
    export_bundle(checkpoint, tmp_path / "bundle", target="tensorrt", precision="bf16", weights="link")
    assert all(plan.stripped for (plan,) in build(tmp_path / "bundle", strip_weights=True).plans.values())


def test_bidirectional_attention(
    random_checkpoint: Callable[..., Path],
    build: Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint = Checkpoint.open(random_checkpoint("narrow"), attention="bidirectional")
    folder = tmp_path / "bundle"
    export_bundle(checkpoint, folder, target="tensorrt", precision="bf16")
    check_profiles(build(folder), requested(checkpoint, monkeypatch))
