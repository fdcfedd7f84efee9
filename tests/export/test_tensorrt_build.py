"""Exported graphs through the whole build with the real compiler: every component of `shapes`, and real requests.

The compiler is TensorRT for RTX, which needs no GPU. Its account of the layers is held against what graphs promise, and
its profiles against the calls of real requests to the reference.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import pytest
from safetensors import safe_open

from qwen_image_engine.engines.core.components import COMPONENTS
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.core.graph.joined_products import JOINT
from qwen_image_engine.engines.plans.entry import Shape
from qwen_image_engine.engines.plans.profile import Range
from qwen_image_engine.engines.plans.profile_choice import choose_profile
from qwen_image_engine.engines.tensorrt.build.job import BuildOptions, Weights
from qwen_image_engine.engines.tensorrt.build.onnx_weights import weights_left_out
from qwen_image_engine.engines.tensorrt.build.summary import summary
from qwen_image_engine.engines.tensorrt.kernels.block import middle_block
from qwen_image_engine.engines.tensorrt.kernels.kernel import kernels_of
from qwen_image_engine.engines.tensorrt.kernels.layer import read_layers
from qwen_image_engine.engines.tensorrt.kernels.ports import Ports
from qwen_image_engine.export.bundle.bundle import export_bundle
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.pipeline import reference_pipeline
from qwen_image_engine.runtime.bundle.bound_lists import bound_bytes, bound_count
from qwen_image_engine.runtime.bundle.files import check_bound_lists
from qwen_image_engine.runtime.bundle.manifest import Manifest, read_manifest
from qwen_image_engine.runtime.component_pool import ComponentPool
from qwen_image_engine.runtime.tools.build.build import build_bundle
from qwen_image_engine.runtime.tools.build.shapes import BuildShapes
from qwen_image_engine.runtime.tools.kernels.count import count_kernels
from tests.support.compiler import CAPABILITIES, need_compiler
from tests.support.images import patches
from tests.support.kernel_accounts import MOST_OF_SHAPES, PREFIX, SIZES
from tests.support.paths import ROOT
from tests.support.plans import kept_plans
from tests.support.shared import SharedFolders
from tests.support.single_file import write_single_file

SHAPES = BuildShapes(
    sizes=((96, 96), (160, 160)), references=Range(0, 1, 2), reference_resolution=288, batch=Range(1, 1, 2)
)
ONE_SIZE = replace(SHAPES, sizes=SHAPES.sizes[-1:])
REQUESTS: tuple[dict[str, Any], ...] = (
    {"prompt": "", "width": 32, "height": 32},
    {"prompt": "a red circle " * 40, "width": 96, "height": 96, "num_images": 2},
    {"prompt": "make it blue", "width": 160, "height": 128, "references": [patches(200, 101)]},
    {"prompt": "蓝色", "width": 128, "height": 96, "references": [patches(60, 110), patches(90, 90, "RGB", 1)]},
)
Calls = list[tuple[str, Mapping[str, Shape]]]
NETWORKS = {
    "bf16": {"text_encoder", "vision", "transformer", "vae"},
    "fp8": {"text_encoder", "transformer"},
    "int8": {"transformer"},
}
"""The networks of each bundle that differ, by some byte, from those of every bundle before it."""

SIZED = ("step", "vae_decoder_mid", "vae_decoder_up")
"""The components whose plans have a profile for each size of a picture."""

SOURCE = ROOT / "reference" / "shapes" / "checkpoint"


@pytest.fixture(scope="session")
def shapes_bundle(calibrated: Callable[[Path], Path], shared: SharedFolders) -> Callable[[str], Path]:
    """`shapes_bundle(precision) -> bundle`; read-only. In FP8 the attention is too."""

    def bundle(precision: str) -> Path:
        def write(folder: Path) -> None:
            calibration = calibrated(SOURCE) if precision != "bf16" else None
            own: dict[str, Any] = {
                "precision": precision,
                "calibration": calibration,
                "fp8_attention": precision == "fp8",
            }
            export_bundle(SOURCE, folder, target="tensorrt", **own)

        return shared(write, "bundle", "shapes", "tensorrt", precision)

    return bundle


def no_gpu() -> Any:
    raise QwenImageError("no GPU is asked for")


def other_networks(manifest: Manifest, plain: Manifest) -> set[str]:
    """Return the networks whose graphs or weights differ between two bundles."""
    assert manifest.components.keys() == plain.components.keys()
    return {
        COMPONENTS[name].network
        for name, entry in manifest.components.items()
        for file in (entry.model, *entry.weights)
        if manifest.files[file] != plain.files[file]
    }


def build(
    folder: Path, precision: str, only: Sequence[str] = (), weights: Weights = "bound", shapes: BuildShapes = ONE_SIZE
) -> Manifest:
    """Build a bundle's components for the oldest GPUs that take its precision."""
    need_compiler()
    build_bundle(
        folder,
        shapes,
        BuildOptions(weights=weights),
        engine="tensorrt-rtx",
        compute_capabilities=(CAPABILITIES[precision],),
        only=only,
        device=no_gpu,
        run=kept_plans(),
    )
    return read_manifest(folder)


def requested(checkpoint: Checkpoint) -> list[Calls]:
    """Every component's calls, by the shapes of their inputs, in each of the requests to the reference."""
    seen: Calls = []
    found: list[Calls] = []
    run = ComponentPool.run

    def watched(components: ComponentPool, component: str, inputs: Mapping[str, Any]) -> Any:
        seen.append((component, {name: tuple(values.shape) for name, values in inputs.items()}))
        return run(components, component, inputs)

    with pytest.MonkeyPatch.context() as patch, reference_pipeline(checkpoint) as pipeline:
        patch.setattr(ComponentPool, "run", watched)
        for request in REQUESTS:
            pipeline.generate(**request, steps=2, reference_resolution=288)
            found.append([*seen])
            seen.clear()
    return found


@pytest.fixture(scope="module")
def calls() -> list[Calls]:
    """The calls of the requests to `shapes`, by request."""
    return requested(Checkpoint.open(SOURCE))


def check_profiles(manifest: Manifest, requests: list[Calls]) -> None:
    """Each call to a built component has a profile, and each component a call."""
    calls = [call for request in requests for call in request]
    for component, shapes in calls:
        for plan in manifest.plans.get(component, ()):
            choose_profile(manifest.components[component].contract, plan.profiles, shapes, "qwen-image build")
    assert {component for component, _ in calls} == set(manifest.components)


def check_kernels(folder: Path, manifest: Manifest) -> None:
    """Sizes are known but for strides; no block of a step in bf16 takes more kernels or traffic than is stated."""
    found = count_kernels(folder).profiles
    assert all(item.sizes_known for item in found if item.component != "vae_encoder")
    assert all(item.block for item in found if item.component in ("step", "prefix", "prefix_image"))
    if manifest.precision == "bf16":
        (plan,) = manifest.plans["step"]
        names, layers = read_layers((folder / str(plan.layers)).read_text(encoding="utf-8"))
        sizes = {"batch": 1, "tokens": SIZES["1024x1024"], "prefix": PREFIX}
        for index, _ in enumerate(plan.profiles):
            own = [layer for layer in layers if layer.profile == index]
            kernels, _ = kernels_of(names, own, Ports.at(manifest.components["step"].contract, sizes, {}))
            block = middle_block(kernels)
            assert block is not None
            moved = sum((kernel.read or 0) + (kernel.written or 0) for kernel in block.kernels)
            assert len(block.kernels) <= MOST_OF_SHAPES[0]
            assert 1.5 * (block.least_bytes or 0) < moved <= MOST_OF_SHAPES[1]


def cache_types(account: str) -> set[str]:
    """The types of the keys and values that kernels read from outside."""
    tensors = [tensor for layer in json.loads(account)["Layers"] for tensor in layer["Inputs"]]
    return {item["Datatype"] for item in tensors if re.match(r"(key|value)_\d+( |$)", item["Name"])}


@pytest.mark.process
@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8"])
def test_every_component_of_shapes_is_built_as_its_graph_is(
    shapes_bundle: Callable[[str], Path],
    precision: str,
    calls: list[Calls],
    tmp_path: Path,
) -> None:
    """A network that bundles have the same to a byte is built once; in bf16 what depends on the size for two sizes."""
    folder = Path(shutil.copytree(shapes_bundle(precision), tmp_path / "bundle"))
    exported = read_manifest(folder)
    other = {COMPONENTS[name].network for name in exported.components}
    for earlier in itertools.takewhile(lambda name: name != precision, NETWORKS):
        other &= other_networks(exported, read_manifest(shapes_bundle(earlier)))
    assert other == NETWORKS[precision]
    asked = [name for name in exported.components if COMPONENTS[name].network in other]
    two_sizes = [name for name in asked if precision == "bf16" and name in SIZED]
    if two_sizes:
        build(folder, precision, only=two_sizes, shapes=SHAPES)
    manifest = build(folder, precision, only=[name for name in asked if name not in two_sizes])
    assert manifest.plans.keys() == set(asked)
    assert all(len(manifest.plans[name][0].profiles) > 1 for name in two_sizes)
    check_profiles(manifest, calls[1:] if precision == "fp8" else calls)  # FP8 attention wants 32 keys
    layers = Checkpoint.open(SOURCE).transformer.num_layers
    # Of a prefix's last layer keys and values are enough.
    attentions = {"step": layers, "prefix": layers - 1, "prefix_image": layers - 1}
    for name, (plan,) in manifest.plans.items():
        entry = manifest.components[name]
        assert len(plan.scratch_bytes) == len(plan.profiles)
        assert plan.fused_attentions == len(entry.fused_attentions or ()) == attentions.get(name, plan.fused_attentions)
        counts = {"fp8": plan.fp8_products, "int8": plan.int8_products}
        assert counts.pop(precision, 0) == len(entry.quantised_layers)
        assert not any(counts.values())
        account = summary((folder / str(plan.layers)).read_text(encoding="utf-8"))
        assert [item.profile for item in account] == [item.name for item in plan.profiles]
        for item in account:
            assert item.products.get(precision, 0) >= len(entry.quantised_layers)
            assert (
                item.fp8_attentions
                == len(entry.fp8_attention)
                == (layers if (name, precision) == ("step", "fp8") else 0)
            )
            assert not item.wide
            assert not set(item.unfused).intersection(entry.fused_attentions or ())
            assert "unknown" not in item.products
    assert bool(manifest.components["step"].quantised_layers) == (precision != "bf16")
    check_kernels(folder, manifest)
    check_bound_weights(folder, manifest)
    if precision == "bf16":
        check_weights_inside(folder, manifest)
    (plan,) = manifest.plans["step"]
    read = cache_types((folder / str(plan.layers)).read_text(encoding="utf-8"))
    assert read == {"FP8" if precision == "fp8" else "BFloat16"}


def check_bound_weights(folder: Path, manifest: Manifest) -> None:
    """All plans but the VAE's take their weights as inputs: those of the graph that are more than a vector, hashed."""
    check_bound_lists(folder, manifest)
    contents = cache(lambda name: (folder / name).read_bytes())
    for name, (plan,) in manifest.plans.items():
        graph = onnx.load(folder / manifest.components[name].model, load_external_data=False).graph
        places = {
            tensor.name: {entry.key: entry.value for entry in tensor.external_data} for tensor in graph.initializer
        }
        kernels = {node.input[1] for node in graph.node if node.op_type == "Conv"}
        scales = {node.input[1] for node in graph.node if node.op_type.endswith("quantizeLinear")}
        matrices = {
            tensor.name
            for tensor in graph.initializer
            if places[tensor.name] and sum(size > 1 for size in tensor.dims) > 1
        }
        pieces = {piece.name: (weight, piece) for weight in plan.bound for piece in weight.pieces}
        assert pieces.keys() == matrices - kernels - scales
        assert len(pieces) == bound_count(plan.bound)
        assert bool(plan.bound) == (COMPONENTS[name].network != "vae")
        for weight, piece in pieces.values():
            place = places[piece.name]
            assert piece.file == (Path(manifest.components[name].model).parent / place["location"]).as_posix()
            with safe_open(folder / piece.file, "np") as stored:
                assert tuple(stored.get_slice(piece.name).get_shape()) == piece.shape
            begin = int(place["offset"])
            data = memoryview(contents(piece.file))[begin : begin + int(place["length"])]
            assert piece.sha256 == hashlib.sha256(data).hexdigest()
            assert weight.shape[1:] == piece.shape[1:]
        quantised = [weight for weight, _ in pieces.values() if weight.dtype in ("int8", "float8_e4m3fn")]
        assert len(quantised) == len(manifest.components[name].quantised_layers)  # as their codes
    check_joined_weights(manifest)


def check_joined_weights(manifest: Manifest) -> None:
    """Queries and keys are one input, and so are both products of an MLP in FP8, in each plan of a network alike.

    A prefix's last block has keys and values alone. Scales of INT8 are many, and its weights stay apart.
    """
    step, prefix = ({weight.name: weight for weight in manifest.plans[name][0].bound} for name in ("step", "prefix"))
    assert all(step[name] == prefix[name] for name in step.keys() & prefix.keys())  # one copy on a card
    own = [name for name in prefix.keys() - step.keys() if "txt_in" not in name]
    assert [name for name in own if "attn" in name] == own
    assert len(own) == (manifest.precision != "int8")
    blocks = manifest.plans["step"][0].fused_attentions
    kinds = {"bf16": (blocks, 0), "fp8": (blocks, blocks), "int8": (0, 0)}[manifest.precision]
    joint = [name for name in step if JOINT in name]
    assert tuple(sum(word in name for name in joint) for word in ("to_k", "gate_layer")) == kinds
    assert len(joint) == sum(kinds)
    for encoder in manifest.plans.get("text_encoder", ()):
        assert sum(JOINT in weight.name for weight in encoder.bound) == encoder.fused_attentions


def check_weights_inside(folder: Path, manifest: Manifest) -> None:
    """A plan with its weights inside keeps the same promise, and is larger by nine tenths of them at least.

    `tests/benchmarks/gpu/test_run.py` has that of a prefix in all precisions.
    """
    inside = build(folder, "bf16", only=("text_encoder",), weights="inside")
    (plan,), (bound,) = inside.plans["text_encoder"], manifest.plans["text_encoder"]
    assert not plan.bound
    counts = [(item.fused_attentions, item.fp8_products, item.int8_products) for item in (plan, bound)]
    assert counts[0] == counts[1]
    assert inside.files[plan.file].bytes > manifest.files[bound.file].bytes + 0.9 * bound_bytes(bound.bound)


def test_weights_in_files_have_the_names_that_the_parser_gives_them(
    random_checkpoint: Callable[..., Path], trace_once: None, tmp_path: Path
) -> None:
    """A single file names and stacks them as ComfyUI does; a plan without weights is refitted by the graph's names."""
    need_compiler()
    import tensorrt_rtx as trt

    folder = random_checkpoint(dtype="bfloat16")
    checkpoint = Checkpoint.open(folder, transformer_file=write_single_file(folder, tmp_path / "one.safetensors"))
    export_bundle(checkpoint, tmp_path / "bundle", target="tensorrt", precision="bf16", weights="link")
    log = trt.Logger(trt.Logger.ERROR)
    for entry in read_manifest(tmp_path / "bundle").components.values():
        network = trt.Builder(log).create_network()
        parser = trt.OnnxParser(network, log)
        model = tmp_path / "bundle" / entry.model
        assert parser.parse_from_file(str(model))
        names = weights_left_out(model)
        assert names
        assert all(network.mark_weights_refittable(name) for name in names)


@pytest.mark.process
def test_bidirectional_attention(random_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(random_checkpoint("narrow"), attention="bidirectional")
    folder = tmp_path / "bundle"
    export_bundle(checkpoint, folder, target="tensorrt", precision="bf16")
    manifest = build(folder, "bf16", only=("joint",))
    check_profiles(manifest, requested(checkpoint))
    assert manifest.plans["joint"][0].fused_attentions == checkpoint.transformer.num_layers
