"""Baselines of a benchmark that run torch: what they time is what they ran, and they draw what they say."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from qwen_image_engine.reference.baselines.diffusers import check_drawable, load_diffusers, without_vision
from qwen_image_engine.reference.baselines.torch import compile_blocks, load_torch
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.load import load_network
from qwen_image_engine.runtime.bundle.manifest import read_manifest
from qwen_image_engine.runtime.timing import Timing
from qwen_image_engine.runtime.tools.bench.case import Case
from qwen_image_engine.runtime.tools.bench.contender import Unavailable, run_once
from qwen_image_engine.runtime.tools.bench.spec import ContenderSpec

CASE = Case(64, 32, 3, 2, 1)
RESOLUTION = 288
FIRST_STEP = {"prefix_to_first_step", "step", "total", "rest", "encode", "vision", "vae_encoder", "decode"}


@pytest.fixture
def spec(exported: Callable[..., Path]) -> Callable[..., ContenderSpec]:
    def make(name: str, bundle: Path | None = None, checkpoint: str | None = None) -> ContenderSpec:
        return ContenderSpec(name, "baseline", str(bundle or exported()), checkpoint, 1, "resident", RESOLUTION)

    return make


@pytest.mark.parametrize("name", ["diffusers", "diffusers-bf16"])
def test_diffusers(spec: Callable[..., ContenderSpec], name: str) -> None:
    drawer = load_diffusers(spec(name), None)
    drawn = run_once(drawer, CASE, 1, RESOLUTION)
    assert set(drawn.sample) == FIRST_STEP
    assert len(drawn.sample["step"]) == CASE.steps - 1
    assert all(seconds > 0 for stage in drawn.sample.values() for seconds in stage)
    runs = [entry.component for entry in drawer.timings.entries]
    assert runs == ["vision", "text_encoder", "vae_encoder", *["step"] * CASE.steps, "vae_decoder"]
    assert drawer.precision == {"diffusers": "fp32", "diffusers-bf16": "bf16"}[name]


def test_the_reference(spec: Callable[..., ContenderSpec], exported: Callable[..., Path]) -> None:
    drawer = load_torch(spec("torch"), None)
    drawn = run_once(drawer, CASE, 1, RESOLUTION)
    assert set(drawn.sample) == FIRST_STEP | {"prefix", "prefix_image", "first_step", "load"}
    assert len(drawn.sample["step"]) == CASE.steps - 1
    folder = Path(read_manifest(exported()).checkpoint.path)
    assert drawer.disk_bytes == sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


def test_vision_is_taken_out_of_the_text_encoder_that_ran_it() -> None:
    entries = [Timing("run", "vision", 0.25), Timing("run", "vision", 0.5), Timing("run", "text_encoder", 2.0)]
    assert [entry.seconds for entry in without_vision(entries)] == [0.25, 0.5, 1.25]


def test_blocks_are_compiled_once_for_all(
    random_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(module))
    network = load_network(Checkpoint.open(random_checkpoint()), "transformer")
    compile_blocks(network)
    assert compiled == list(network.transformer_blocks)
    compile_blocks(load_network(Checkpoint.open(random_checkpoint()), "vae"))
    assert compiled == list(network.transformer_blocks)


def test_diffusers_cannot_draw_what_it_has_no_files_for(random_checkpoint: Callable[..., Path]) -> None:
    folder = random_checkpoint()
    check_drawable(Checkpoint.open(folder))
    with pytest.raises(Unavailable, match="bidirectional"):
        check_drawable(Checkpoint.open(folder, attention="bidirectional"))
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    with pytest.raises(Unavailable, match="single file"):
        check_drawable(Checkpoint.open(folder, transformer_file=file))
