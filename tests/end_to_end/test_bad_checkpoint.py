"""Damaged checkpoints: the API raises the project's own error, the command says one line and exits 1 or 2.

Nothing is half-written: the output's folder is as empty afterwards as before.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.export.bundle.bundle import export_bundle
from qwen_image_engine.reference.pipeline import reference_pipeline
from tests.support.edit_checkpoint import edit_json, edit_tensors

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"


def truncate(path: Path, lost_bytes: int = 1000) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-lost_bytes])


def key(file: str, *keys: str, value: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / file, *keys, value=value)


def tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    return lambda folder: edit_tensors(folder / TRANSFORMER, change)


TEXT = ("text_encoder/config.json", "text_config")

# Name -> (damage to a checkpoint's copy, a word of the message).
DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (shutil.rmtree, "does not exist"),
    "no model_index.json": (lambda folder: (folder / "model_index.json").unlink(), "model_index.json"),
    "incomplete: a folder": (lambda folder: shutil.rmtree(folder / "vae"), "vae"),
    "incomplete: the weights": (lambda folder: (folder / TRANSFORMER).unlink(), "no weights"),
    "incomplete: the tokenizer": (
        lambda folder: (folder / "processor" / "tokenizer.json").unlink(),
        "tokenizer.json",
    ),
    "truncated": (lambda folder: truncate(folder / TRANSFORMER), "truncated"),
    "no JSON": (lambda folder: (folder / "vae" / "config.json").write_text("{"), "config.json"),
    "another architecture": (key("model_index.json", "_class_name", value="FluxPipeline"), "FluxPipeline"),
    "another encoder": (key("text_encoder/config.json", "model_type", value="llama"), "llama"),
    "missing key": (key("transformer/config.json", "num_layers", value=...), "num_layers"),
    "missing key of the schedule": (key("scheduler/scheduler_config.json", "base_shift", value=...), "base_shift"),
    "attention bias": (key(*TEXT, "attention_bias", value=True), "attention_bias"),
    "another activation": (key(*TEXT, "hidden_act", value="gelu"), "hidden_act"),
    "another rope type": (key(*TEXT, "rope_parameters", "rope_type", value="yarn"), "rope_type"),
    "a patch size": (key("transformer/config.json", "patch_size", value=2), "patch_size"),
    "two rope settings": (key(*TEXT, "rope_scaling", value={"rope_type": "yarn", "factor": 4.0}), "rope_scaling"),
    "rope on a part": (key(*TEXT, "partial_rotary_factor", value=0.5), "partial_rotary_factor"),
    "more blocks than stored": (key("transformer/config.json", "num_layers", value=10**12), "num_layers"),
    "more layers than stored": (key(*TEXT, "num_hidden_layers", value=10**12), "num_hidden_layers"),
    "a width beyond tensors": (key("transformer/config.json", "mlp_ratio", value=10**18), "no tensors can have"),
    "nested too deep": (lambda folder: (folder / "vae" / "config.json").write_text("[" * 100_000), "config.json"),
    "no image processor": (lambda folder: (folder / "processor/processor_config.json").unlink(), "incomplete"),
    "another image processor": (
        key("processor/processor_config.json", "image_processor", "patch_size", value=14),
        "image_processor.patch_size",
    ),
    "a grid that is none": (key("model_index.json", "sample_sigmas", value=5), "sample_sigmas"),
    "a grid that cannot be stretched": (key("model_index.json", "sample_sigmas", value=[1.0]), "at least 2"),
    "missing tensor": (tensors(lambda found: found.pop("img_in.weight")), "1 missing (img_in.weight)"),
    "unexpected tensor": (
        tensors(lambda found: found.update({"img_in.bias": torch.zeros(4)})),
        "1 unexpected (img_in.bias)",
    ),
    "misshapen tensor": (
        tensors(lambda found: found.update({"img_in.weight": torch.zeros(3, 4)})),
        "img_in.weight is (3, 4)",
    ),
}


@pytest.fixture
def checkpoint(random_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    return shutil.copytree(random_checkpoint(), tmp_path / "model")


@pytest.mark.parametrize("name", list(DAMAGE))
def test_damaged_checkpoint(checkpoint: Path, output: Path, fails: Callable[..., str], name: str) -> None:
    damage, word = DAMAGE[name]
    damage(checkpoint)
    with pytest.raises(QwenImageError) as raised:
        export_bundle(checkpoint, output / "bundle")
    assert word in str(raised.value)
    with pytest.raises(QwenImageError):
        reference_pipeline(checkpoint)
    assert word in fails(1, "export", "-m", checkpoint, output / "bundle")


def test_unknown_target_and_precision(checkpoint: Path, output: Path, fails: Callable[..., str]) -> None:
    with pytest.raises(UsageError):
        export_bundle(checkpoint, output / "bundle", target="cpu", precision="fp4")
    for verb in ("plan", "export"):
        message = fails(2, verb, "-m", checkpoint, output / "bundle", "--precision", "fp4")
        assert "--target cpu --precision fp32" in message
