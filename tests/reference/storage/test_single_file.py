"""The transformer as a single file in ComfyUI's spelling: against diffusers' own conversion, and what is refused."""

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_qwen_image21_transformer_checkpoint_to_diffusers
from safetensors.torch import load_file

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.load import load_network
from tests.support.edit_checkpoint import edit_tensors
from tests.support.random_configurations import CONFIGURATIONS
from tests.support.single_file import write_single_file

BLOCK = "transformer_blocks.1.img_mlp"


@pytest.fixture
def single_file(random_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    return write_single_file(random_checkpoint(), tmp_path / "qwen_image_2.1.safetensors")


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        *((name, prefix) for name in CONFIGURATIONS for prefix in ("model.diffusion_model.", "")),
        *(("narrow", prefix) for prefix in ("diffusion_model.", "transformer.", "model.", "net.", "_orig_mod.")),
    ],
)
def test_tensors_are_those_of_diffusers(
    random_checkpoint: Callable[..., Path], tmp_path: Path, name: str, prefix: str
) -> None:
    folder = random_checkpoint(name, dtype="bfloat16", max_shard_size="500KB")
    path = write_single_file(folder, tmp_path / "model.safetensors", prefix=prefix)
    renamed = {f"model.diffusion_model.{key.removeprefix(prefix)}": value for key, value in load_file(path).items()}
    expected = convert_qwen_image21_transformer_checkpoint_to_diffusers(renamed)
    checkpoint = Checkpoint.open(folder, transformer_file=path)
    component = checkpoint.components["transformer"]
    assert component.tensors.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(component.read(key), tensor), key
        assert torch.equal(component.read(key, copy=True), tensor), key
    plain = Checkpoint.open(folder)
    assert component.parameters == plain.components["transformer"].parameters
    assert component.dtypes == plain.components["transformer"].dtypes
    loaded = load_network(checkpoint, "transformer").state_dict()
    assert all(
        torch.equal(loaded[key], tensor) for key, tensor in load_network(plain, "transformer").state_dict().items()
    )


def test_identity_is_that_of_the_file(
    single_file: Path, random_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder = random_checkpoint()
    plain, opened = Checkpoint.open(folder), Checkpoint.open(folder, transformer_file=single_file)
    assert opened.config_sha256() == plain.config_sha256()
    assert opened.weights_sha256() != plain.weights_sha256()
    assert opened.weights_sha256() == Checkpoint.open(folder, transformer_file=str(single_file)).weights_sha256()
    assert opened.name == f"{folder.name} with qwen_image_2.1.safetensors"
    before = opened.weights_sha256()
    edit_tensors(single_file, lambda tensors: tensors["model.diffusion_model.proj_out.weight"].mul_(2))
    assert Checkpoint.open(folder, transformer_file=single_file).weights_sha256() != before


def test_the_folder_needs_no_transformer_of_its_own(
    single_file: Path, random_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(random_checkpoint(), tmp_path / "model")
    (folder / "transformer/diffusion_pytorch_model.safetensors").unlink()
    load_network(Checkpoint.open(folder, transformer_file=single_file), "transformer")


def test_missing_and_unmatched_keys_are_named(single_file: Path, random_checkpoint: Callable[..., Path]) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.diffusion_model.img_in.weight"]
        tensors["vae.conv1.weight"] = torch.zeros(2)
        tensors["model.diffusion_model.transformer_blocks.0.img_mlp.gate_up.bias"] = torch.zeros(2, 1)

    edit_tensors(single_file, change)
    with pytest.raises(QwenImageError) as raised:
        load_network(Checkpoint.open(random_checkpoint(), transformer_file=single_file), "transformer")
    text = str(raised.value)
    assert str(single_file) in text
    assert "1 missing (img_in.weight)" in text
    assert "2 unexpected (" in text
    assert "vae.conv1.weight" in text
    assert "transformer_blocks.0.img_mlp.gate_up.bias" in text


@pytest.mark.parametrize("key", [f"{BLOCK}.proj.weight", "model.diffusion_model." + f"{BLOCK}.gate_layer.weight"])
def test_a_tensor_that_is_there_twice(single_file: Path, random_checkpoint: Callable[..., Path], key: str) -> None:
    edit_tensors(single_file, lambda tensors: tensors.update({key: torch.zeros(288, 96)}))
    with pytest.raises(QwenImageError, match=r"keys '.*' and '.*' are both transformer_blocks\.1\.img_mlp\."):
        Checkpoint.open(random_checkpoint(), transformer_file=single_file)


def test_rows_that_cannot_be_halved(single_file: Path, random_checkpoint: Callable[..., Path]) -> None:
    key = f"model.diffusion_model.{BLOCK}.gate_up.weight"
    edit_tensors(single_file, lambda tensors: tensors.update({key: tensors[key][1:].clone()}))
    with pytest.raises(QwenImageError, match=r"gate_up\.weight' is \(575, 96\), expected as many rows of the gate"):
        Checkpoint.open(random_checkpoint(), transformer_file=single_file)


def test_files_that_are_none(random_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = random_checkpoint()
    for name, expected in (
        ("absent.safetensors", "does not exist, expected a .safetensors file with the transformer in it"),
        ("model.gguf", "expected a .safetensors file"),
    ):
        with pytest.raises(QwenImageError, match=expected):
            Checkpoint.open(folder, transformer_file=tmp_path / name)
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(QwenImageError, match="is a folder, expected"):
        Checkpoint.open(folder, transformer_file=tmp_path / "folder.safetensors")
    (tmp_path / "text.safetensors").write_text("none")
    with pytest.raises(QwenImageError, match="not a safetensors file"):
        Checkpoint.open(folder, transformer_file=tmp_path / "text.safetensors")


def test_files_of_other_formats(random_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    tensors = {"transformer_blocks.0.attn.to_q.weight": torch.zeros(4, 4)}
    torch.save(tensors, tmp_path / "model.ckpt")
    torch.save(tensors, tmp_path / "model.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "model-Q4_K_M.gguf").write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, 0) + bytes(64))
    folder = random_checkpoint()
    for name, expected in (
        ("model.ckpt", r"is a zip archive, as torch\.save writes it; expected a \.safetensors file$"),
        ("model.pth", r"is a pickle, as torch\.save wrote it; expected a \.safetensors file$"),
        ("model-Q4_K_M.gguf", "is a GGUF file, whose weights are quantised; expected the .safetensors file in BF16"),
    ):
        renamed = shutil.copyfile(tmp_path / name, tmp_path / "renamed.safetensors")
        for path in (tmp_path / name, renamed):
            with pytest.raises(QwenImageError, match=expected):
                Checkpoint.open(folder, transformer_file=path)


def test_another_ending_is_taken(random_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = random_checkpoint()
    path = write_single_file(folder, tmp_path / "model.sft")
    load_network(Checkpoint.open(folder, transformer_file=path), "transformer")
