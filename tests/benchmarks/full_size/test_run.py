"""benchmarks/full_size/run.py on a checkpoint of 0.05 GB: the code that makes and measures the one of 33 GB.

One plan and one drawing run in processes of their own, as all do there. The others run in this one: what a process
costs is measured the same for all.
"""

import io
import json
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common.measured_process import Measured, run_measured
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.runtime.bundle.files import verify_files
from qwen_image_engine.runtime.bundle.manifest import read_manifest
from qwen_image_engine.runtime.text.tokenizer import load_tokenizer

SHARDS = {"transformer": 2, "text_encoder": 4, "vae": 1}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoint, made as a whole."""
    from benchmarks.common.released_configs import small_configs
    from benchmarks.full_size.checkpoint import write_checkpoint

    folder = tmp_path_factory.mktemp("full-size")
    made = write_checkpoint(folder / "checkpoint", small_configs(), turbo=True)
    assert made.kept_bytes == 0
    return folder


def here(*command: object) -> Measured:
    """Run a command of `full_size.run` in this process, and return its output."""
    from benchmarks.full_size import parts, run
    from qwen_image_engine.runtime.cli.main import main

    words, output = list(map(str, command)), io.StringIO()
    began, cpu = time.perf_counter(), time.process_time()
    with redirect_stdout(output), pytest.MonkeyPatch.context() as patch:
        if words[: len(run.PARTS)] == list(run.PARTS):
            patch.setattr(sys, "argv", ["parts", *words[len(run.PARTS) :]])
            parts.main()
        else:
            assert main(words[len(run.COMMAND) :]) == 0
    return Measured(output.getvalue(), time.perf_counter() - began, time.process_time() - cpu, None)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """`in_this_process()`: from then on subcommands run their commands here."""
    return lambda: monkeypatch.setattr("benchmarks.full_size.run.run_measured", here)


@pytest.fixture(scope="module")
def exports(work: Path, trace_once: None) -> list[dict[str, Any]]:
    from benchmarks.full_size import run

    def measured(*command: object) -> Measured:
        return run_measured(*command) if "plan" in command and "int8" in command else here(*command)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "EXPORTS", (("cpu", "fp32", "link"), ("cpu", "int8", "copy")))  # of the same traced graphs
        patch.setattr(run, "run_measured", measured)
        return list(full_size(work, "export")["exports"])


def full_size(work: Path, subcommand: str, *arguments: object) -> dict[str, Any]:
    """The result that a subcommand writes."""
    from benchmarks.full_size.run import main

    output = work / "results"
    before = set(output.glob("*"))
    assert main([subcommand, str(work / "checkpoint"), "--output", str(output), *map(str, arguments)]) == 0
    (path,) = set(output.glob("*")) - before
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    assert {"machine", "versions", "commit"} <= found.keys()
    return found


def test_the_released_layout_in_small(work: Path) -> None:
    checkpoint = Checkpoint.open(work / "checkpoint")
    assert {name: len(component.files) for name, component in checkpoint.components.items()} == SHARDS
    dtypes = {name: set(component.dtypes) for name, component in checkpoint.components.items()}
    assert dtypes == {"transformer": {"BF16"}, "text_encoder": {"BF16"}, "vae": {"F32"}}
    stored = checkpoint.components["text_encoder"].tensors
    assert {"lm_head.weight", "model.visual.patch_embed.proj.weight", "model.language_model.norm.weight"} <= set(stored)
    times = {name for name in checkpoint.components["vae"].tensors if ".time_conv." in name}
    assert len(times) == 2 * 6
    tokenizer = load_tokenizer(work / "checkpoint")
    assert [tokenizer.token_to_id(token) for token in ("<|endoftext|>", "<|image_pad|>")] == [151643, 151655]
    assert tokenizer.encode("<|im_start|>").ids == [151644]


def test_values_are_near_what_keeps_activations_in_order(work: Path) -> None:
    component = Checkpoint.open(work / "checkpoint").components["transformer"]
    weight = component.read("transformer_blocks.1.attn.to_q.weight").float()
    assert weight.std().item() == pytest.approx(96**-0.5, rel=0.02)
    assert (weight @ weight.T).fill_diagonal_(0).abs().max() < 0.5  # no row comes twice
    assert component.read("transformer_blocks.0.attn.norm_q.weight").float().mean().item() == pytest.approx(1, abs=0.05)


def test_making_it_again_writes_what_is_missing_alone(work: Path) -> None:
    from benchmarks.common.released_configs import small_configs
    from benchmarks.full_size.checkpoint import write_checkpoint

    folder = work / "checkpoint"
    files = sorted(folder.rglob("*.safetensors"))
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}
    lost, cut = folder / "vae" / "diffusion_pytorch_model.safetensors", files[0]
    lost.unlink()
    cut.write_bytes(before[cut][0][:-1])
    made = write_checkpoint(folder, small_configs(), turbo=True)
    assert made.written_bytes == len(before[lost][0]) + len(before[cut][0])
    assert sorted(folder.rglob("*.safetensors")) == files
    for file in files:
        assert file.read_bytes() == before[file][0]
        assert file in (lost, cut) or file.stat().st_mtime_ns == before[file][1]
    assert not list(folder.rglob("*.partial"))


@pytest.mark.process
def test_linked_export_copies_no_weights(work: Path, exports: list[dict[str, Any]]) -> None:
    (found,) = (item for item in exports if item["weights"] == "link")
    assert found["written_bytes"] < 2_000_000 < found["bundle_bytes"]
    components = read_manifest(work / "checkpoint-cpu-fp32").components
    assert found["checked_weights"].keys() == components.keys()
    assert all(found["checked_weights"].values())
    assert {f"graph of {name}" for name in components} <= found["stages"].keys()


@pytest.mark.process
def test_int8_export_writes_what_was_predicted(work: Path, exports: list[dict[str, Any]]) -> None:
    (found,) = (item for item in exports if item["precision"] == "int8")
    assert found["written_bytes"] == pytest.approx(found["predicted"]["written_bytes"], rel=0.25)
    folder = work / "checkpoint-cpu-int8"
    assert verify_files(folder, read_manifest(folder)) == []


@pytest.mark.process
def test_both_memory_policies_draw_the_same_and_encode_once(
    work: Path, exports: list[dict[str, Any]], in_this_process: Callable[[], None]
) -> None:
    assert exports
    pictures = work / "pictures"
    pictures.mkdir()
    for memory in ("sequential", "resident"):
        if memory == "resident":
            in_this_process()
        found = full_size(work, "run", "--size", 64, "--memory", memory, "--pictures", pictures)
        first, second = found["pictures"]
        assert (first["steps"], found["prompt_tokens"]) == (8, pytest.approx(200, abs=5))
        assert first["seconds"]["encode_s"] > 0
        assert second["seconds"]["encode_s"] == second["seconds"]["prefix_s"] == 0
        assert {"run text_encoder", "run prefix", "run step"} <= first["peaks"].keys()
    for seed in range(2):
        drawn = [(pictures / f"{memory}-{seed}.png").read_bytes() for memory in ("sequential", "resident")]
        assert drawn[0] == drawn[1]


@pytest.mark.process
def test_a_step_and_a_decode_alone(
    work: Path, exports: list[dict[str, Any]], in_this_process: Callable[[], None]
) -> None:
    assert exports
    in_this_process()
    step = full_size(work, "step", "--size", 128, "--rounds", 2)
    assert (step["tokens"], step["prefix"]) == (64, 200)
    assert [item["stage"] for item in step["stages"]] == ["load step", "run step", "run step"]
    assert step["predicted"].keys() == {"text_encoder", "prefix", "step", "vae_decoder"}
    decode = full_size(work, "decode", "--size", 96)
    assert {item["stage"].partition(" ")[0] for item in decode["stages"]} == {"load", "run"}
    assert decode["process_s"] > 0
