"""What the real compiler answers: TensorRT for RTX, without a GPU, on small graphs with faults planted in them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.plans.entry import Profile
from qwen_image_engine.engines.tensorrt.build.job import BuildJob, BuildOptions, BuildResult, ExpectedFusions
from qwen_image_engine.engines.tensorrt.build.launch import run_build
from qwen_image_engine.engines.tensorrt.build.summary import summary
from tests.support.compiler import need_compiler
from tests.support.planted_graph import WIDTH, PlantedGraph

pytestmark = pytest.mark.process


@pytest.fixture(autouse=True)
def _compiler() -> None:
    need_compiler()


def profile(name: str, *tokens: int, mask: bool = False) -> Profile:
    least, best, largest = tokens
    shapes = {"x": ((1, least, WIDTH), (1, best, WIDTH), (1, largest, WIDTH))}
    masks = {"mask": ((1, 1, least, least), (1, 1, best, best), (1, 1, largest, largest))} if mask else {}
    return Profile(name, {**shapes, **masks})


def job(folder: Path, model: Path, promise: ExpectedFusions, **changes: Any) -> BuildJob:
    made = BuildJob(
        component="step",
        builder="tensorrt-rtx",
        compute_capabilities=("8.9",),
        model=str(model),
        plan=str(folder / "step.plan"),
        timing_cache=None,
        profiles=(profile("small", 64, 256, 256), profile("large", 257, 512, 512)),
        options=BuildOptions(),
        promise=promise,
        softmax_scale=None,
        layers=str(folder / "step.layers.json"),
    )
    return replace(made, **changes)


def build(made: BuildJob) -> BuildResult:
    return run_build(made, lambda words: None)


def planted(folder: Path, *, faults: bool) -> Path:
    graph = PlantedGraph()
    graph.attention("fused", 6)
    graph.product("narrow", input_fp8=True, weight_fp8=True)
    if faults:
        graph.attention("wide_head", 2)  # 384 channels
        graph.product("wide_weight", input_fp8=True)
    return graph.save(folder / "planted.onnx")


def test_a_promise_that_is_kept(tmp_path: Path) -> None:
    made = job(tmp_path, planted(tmp_path, faults=False), ExpectedFusions(1, 0, 0, ("fused",)))
    result = build(replace(made, compute_capabilities=("8.9", "12.0")))
    plan = tmp_path / "step.plan"
    assert (result.bytes, result.sha256) == (plan.stat().st_size, hashlib.sha256(plan.read_bytes()).hexdigest())
    assert (result.fused_attentions, result.fp8_products, result.int8_products) == (1, 1, 0)
    assert len(result.scratch_bytes) == 2
    assert 0 < result.scratch_bytes[0] < result.scratch_bytes[1]
    found = summary((tmp_path / "step.layers.json").read_text())
    assert [(item.profile, dict(item.products)) for item in found] == [
        ("small", {"bf16": 3, "fp8": 1}),
        ("large", {"bf16": 3, "fp8": 1}),
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"planted.onnx", "step.plan", "step.layers.json"}


def test_an_unfused_attention_and_a_product_in_another_precision_are_named(tmp_path: Path) -> None:
    promise = ExpectedFusions(2, 0, 0, ("fused", "wide_head"))
    with pytest.raises(
        QwenImageError,
        match=r"promises: 1 fused attentions of 2; not fused: wide_head\. "
        r"1 products in FP8 of 2; in a higher precision: wide_weight\. It was not kept",
    ):
        build(job(tmp_path, planted(tmp_path, faults=True), promise))
    account = json.loads((tmp_path / "step.layers.json").read_text())
    assert account["Profiles"] == ["small", "large"]
    assert any("wide_head" in layer["Metadata"] for layer in account["Layers"])


def test_an_attention_with_a_mask_is_named(tmp_path: Path) -> None:
    graph = PlantedGraph()
    graph.attention("masked", 6, mask=True)
    model = graph.save(tmp_path / "planted.onnx")
    made = job(tmp_path, model, ExpectedFusions(0, 0, 0, ("masked",)), profiles=(profile("a", 64, 64, 64, mask=True),))
    with pytest.raises(QwenImageError, match=r"made 0 attention layers without a mask of .* none of: masked"):
        build(made)
    assert not (tmp_path / "step.plan").exists()
    build(replace(made, promise=ExpectedFusions(0, 0, 0)))
    (found,) = summary((tmp_path / "step.layers.json").read_text())
    assert found.fused_attentions == 1  # though nothing depends on it


def test_refusals_in_words(tmp_path: Path) -> None:
    model = planted(tmp_path, faults=False)
    made = job(tmp_path, model, ExpectedFusions(1, 0, 0, ("fused",)))
    with pytest.raises(QwenImageError, match=r"step: TensorRT for RTX cannot build it: .*fp8_e4m3"):
        build(replace(made, compute_capabilities=("8.6",)))
    with pytest.raises(QwenImageError, match=r"step: TensorRT for RTX does not build for compute capability 9\.0"):
        build(replace(made, compute_capabilities=("9.0",)))
    with pytest.raises(QwenImageError, match=r"has the inputs \['x'\], its contract \['mask', 'x'\]"):
        build(replace(made, profiles=(profile("a", 64, 64, 64, mask=True),)))
    model.write_bytes(b"no graph")
    with pytest.raises(QwenImageError, match=r"step: TensorRT for RTX cannot parse .*planted\.onnx"):
        build(made)
