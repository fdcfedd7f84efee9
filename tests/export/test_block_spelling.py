"""Kernels of a block that the lowering is spelled to avoid, in plans of the real compiler.

The compiler is TensorRT for RTX, which needs no GPU. What is checked is in its account of a plan's layers.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.tensorrt.build.account import listed_layers
from qwen_image_engine.engines.tensorrt.build.job import BuildOptions
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.runtime.bundle.manifest import read_manifest
from qwen_image_engine.runtime.tools.build.build import build_bundle
from qwen_image_engine.runtime.tools.build.shapes import BuildShapes
from tests.support.compiler import need_compiler
from tests.support.plans import kept_plans

Layers = list[Mapping[str, Any]]


def no_gpu() -> Any:
    raise QwenImageError("no GPU is asked for")


def layers(folder: Path, capability: str) -> Layers:
    """Build the step of a bundle for one size, and return the layers of its plan."""
    need_compiler()
    (built,) = build_bundle(
        folder,
        BuildShapes(sizes=((128, 128),)),
        BuildOptions(),
        engine="tensorrt-rtx",
        compute_capabilities=(capability,),
        only=("step",),
        device=no_gpu,
        run=kept_plans(),
    )
    return listed_layers((folder / str(built.entry.layers)).read_text(encoding="utf-8"))


def kernels(found: Layers, part: str) -> list[str]:
    """Return the names of the kernels that have `part` in their names."""
    return [str(layer["Name"]) for layer in found if part in str(layer["Name"])]


def heads_in_float32(found: Layers, checkpoint: Checkpoint) -> list[str]:
    """Return the names of the kernels that write queries or keys in float32, by heads."""
    config = checkpoint.transformer
    heads = [config.num_attention_heads, config.attention_head_dim]
    return [
        str(layer["Name"])
        for layer in found
        for output in layer["Outputs"]
        if output["Datatype"] == "Float" and output["Dimensions"][-2:] == heads
    ]


@pytest.mark.parametrize("component", ["text_encoder", "step"])
def test_queries_and_keys_of_every_layer_share_their_mean(
    static_bundle: Callable[..., tuple[Path, Path]], component: str
) -> None:
    bundle = static_bundle("narrow", "tensorrt", "bf16")[1]
    file = bundle / read_manifest(bundle).components[component].model
    graph = onnx.load(file, load_external_data=False).graph
    counts = Counter(node.op_type for node in graph.node)
    assert counts["ReduceMean"] == counts["Attention"] >= 2


@pytest.mark.process
@pytest.mark.parametrize("capability", ["8.9", "12.0"])
def test_bf16(static_bundle: Callable[..., tuple[Path, Path]], tmp_path: Path, capability: str) -> None:
    """SiLU and the product of both are in the product's kernel, and the norms write nothing in float32."""
    source, bundle = static_bundle("narrow", "tensorrt", "bf16")
    checkpoint = Checkpoint.open(source)
    found = layers(Path(shutil.copytree(bundle, tmp_path / "bundle")), capability)
    assert len(kernels(found, "FcSiluMul")) == checkpoint.transformer.num_layers
    assert heads_in_float32(found, checkpoint) == []


@pytest.mark.process
@pytest.mark.parametrize("capability", ["8.9", "12.0"])
def test_fp8(static_bundle: Callable[..., tuple[Path, Path]], tmp_path: Path, capability: str) -> None:
    """Products that the compiler makes one of have one scale, so that no kernel scales their results apart."""
    source, bundle = static_bundle("narrow", "tensorrt", "fp8")
    folder = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    found = layers(folder, capability)
    assert heads_in_float32(found, Checkpoint.open(source)) == []
    assert kernels(found, "__myl_MulAdd_") == []
