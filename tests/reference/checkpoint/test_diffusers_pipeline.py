"""A diffusers pipeline in the place of a checkpoint's path."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.export.bundle.bundle import export_bundle
from qwen_image_engine.export.verify.parity import verify_bundle
from qwen_image_engine.export.verify.recording import Case
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.runtime.tools.bench.measure import bench
from qwen_image_engine.runtime.tools.bench.spec import ContenderSpec
from tests.support.oracles import load_edit_pipeline, load_pipeline


@pytest.fixture(scope="module")
def folder(random_checkpoint: Callable[..., Path]) -> Path:
    return random_checkpoint(name="narrow", dtype="bfloat16")


@pytest.fixture
def pipeline(folder: Path) -> Any:
    return load_edit_pipeline(folder)


@pytest.mark.usefixtures("trace_once")
def test_exports_the_files_that_it_was_loaded_from(folder: Path, pipeline: Any, tmp_path: Path) -> None:
    manifest = export_bundle(pipeline, tmp_path / "bundle")
    assert manifest.checkpoint.path == str(folder.resolve())
    assert manifest.checkpoint.weights_sha256 == Checkpoint.open(folder).weights_sha256()
    quick = Case("quick", "a red circle", 64, 32)
    assert verify_bundle(tmp_path / "bundle", pipeline, cases=[quick]).passed


@pytest.mark.usefixtures("trace_once")
def test_bench_runs_the_files_that_it_was_loaded_from(
    folder: Path, pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_bundle(folder, tmp_path / "bundle")
    specs: list[ContenderSpec] = []

    def started(spec: ContenderSpec) -> Any:
        specs.append(spec)
        raise QwenImageError("stopped")

    monkeypatch.setattr("qwen_image_engine.runtime.tools.bench.measure.ContenderProcess", started)
    small: Any = {"baselines": ["torch"], "sizes": [(64, 32)], "steps": [2]}
    with pytest.raises(QwenImageError, match="stopped"):
        bench(tmp_path / "bundle", checkpoint=pipeline, **small)
    assert [spec.checkpoint for spec in specs] == [str(folder)]
    with torch.no_grad():
        next(pipeline.transformer.parameters()).view(-1)[0] += 1
    with pytest.raises(QwenImageError, match="is not what"):
        bench(tmp_path / "bundle", checkpoint=pipeline, **small)
    with pytest.raises(QwenImageError, match="an object is no checkpoint"):
        bench(tmp_path / "bundle", checkpoint=object(), **small)  # type: ignore[arg-type]


def test_other_precision_is_the_same_checkpoint(folder: Path, pipeline: Any) -> None:
    assert Checkpoint.open(pipeline.to(torch.float16)).folder == folder


@pytest.mark.parametrize("name", ["transformer", "text_encoder", "vae"])
def test_changed_weights_are_refused_by_name(pipeline: Any, name: str) -> None:
    key, tensor = list(pipeline.components[name].state_dict().items())[-1]
    with torch.no_grad():
        tensor.view(-1)[0] += 1
    with pytest.raises(QwenImageError, match=rf"{name} is not what .* holds: {key} differs; save it with"):
        Checkpoint.open(pipeline)


def test_an_adapter_in_memory_is_refused(pipeline: Any) -> None:
    from peft import LoraConfig

    pipeline.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    with pytest.raises(QwenImageError, match=r"transformer has other tensors than .*unload adapters"):
        Checkpoint.open(pipeline)


def test_an_offloaded_pipeline_is_refused(pipeline: Any) -> None:
    pipeline.transformer.to("meta")
    with pytest.raises(QwenImageError, match=r"transformer is offloaded: .* name its folder instead"):
        Checkpoint.open(pipeline)


def test_another_schedule_is_refused(pipeline: Any) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    pipeline.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config, base_shift=0.7)
    with pytest.raises(QwenImageError, match=r"scheduler has base_shift = 0\.7, its files"):
        Checkpoint.open(pipeline)


@pytest.mark.parametrize("name", ["transformer", "text_encoder", "vae", "scheduler", "processor"])
def test_a_pipeline_that_lacks_a_part_is_refused(pipeline: Any, name: str) -> None:
    setattr(pipeline, name, None)
    with pytest.raises(QwenImageError, match=f"the pipeline has no {name}, which a bundle needs; load it whole"):
        Checkpoint.open(pipeline)


def test_another_vocabulary_is_refused(pipeline: Any) -> None:
    pipeline.processor.tokenizer.add_tokens(["<a new style>"])
    with pytest.raises(QwenImageError, match=r"tokenizer has '<a new style>' as \d+, its files as no token; save it"):
        Checkpoint.open(pipeline)


def test_a_pipeline_made_in_memory_is_refused(folder: Path) -> None:
    with pytest.raises(QwenImageError, match="was not loaded from a folder; save it with"):
        Checkpoint.open(load_pipeline(folder))


def test_something_else_is_refused() -> None:
    with pytest.raises(QwenImageError, match="a dict is no checkpoint; expected a folder, a hub name or a diffusers"):
        Checkpoint.open({})  # type: ignore[arg-type]
    with pytest.raises(QwenImageError, match=r"^an object is no checkpoint"):
        Checkpoint.open(object())  # type: ignore[arg-type]
