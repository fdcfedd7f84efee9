"""Checkpoints that cannot be opened: damaged files, shards, configs and folders."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.runtime.system.tensor_header import MAX_TENSORS
from tests.support.edit_checkpoint import edit_json, write_header


def damage_truncated(folder: Path) -> None:
    path = folder / "transformer/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])


def damage_header_cut(folder: Path) -> None:
    path = folder / "vae/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def damage_empty(folder: Path) -> None:
    (folder / "vae/diffusion_pytorch_model.safetensors").write_bytes(b"")


def damage_garbage(folder: Path) -> None:
    (folder / "vae/diffusion_pytorch_model.safetensors").write_bytes(b"\xff" * 4096)


def damage_lfs_pointer(folder: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 14230250344\n"
    (folder / "text_encoder/model.safetensors").write_text(text)


def damage_header_text(folder: Path) -> None:
    (folder / "text_encoder/model.safetensors").write_bytes(struct.pack("<Q", 8) + b'{"a": 1,')


def damage_header_list(folder: Path) -> None:
    (folder / "text_encoder/model.safetensors").write_bytes(struct.pack("<Q", 8) + b"[1,2,3] ")


def damage_entry(folder: Path) -> None:
    write_header(folder / "vae/diffusion_pytorch_model.safetensors", {"a": {"dtype": "F32", "shape": [1]}}, b"1234")


def damage_shape(folder: Path) -> None:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}
    write_header(folder / "vae/diffusion_pytorch_model.safetensors", {"a": entry}, b"1234")


def damage_gap(folder: Path) -> None:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}
    write_header(folder / "vae/diffusion_pytorch_model.safetensors", {"a": entry}, b"12345678")


def damage_trailing(folder: Path) -> None:
    with (folder / "vae/diffusion_pytorch_model.safetensors").open("ab") as file:
        file.write(b"more")


def damage_long_header(folder: Path) -> None:
    with (folder / "vae/diffusion_pytorch_model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 25_000_001))
        file.truncate(8 + 25_000_001)  # a hole, which takes no disk space


def damage_dtype(folder: Path) -> None:
    entry = {"dtype": "F6_E3M2", "shape": [4], "data_offsets": [0, 3]}
    write_header(folder / "vae/diffusion_pytorch_model.safetensors", {"a": entry}, b"123")


def damage_number_of_tensors(folder: Path) -> None:
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = {str(number): entry for number in range(MAX_TENSORS + 1)}
    write_header(folder / "vae/diffusion_pytorch_model.safetensors", header, b"")


DAMAGED_FILES = [
    (
        damage_truncated,
        r"transformer/diffusion_pytorch_model\.safetensors: truncated: it holds \d+ bytes, .* lists \d+",
    ),
    (damage_header_cut, r"vae/.*: truncated: it holds 1000 bytes, its header alone takes \d+"),
    (damage_empty, r"vae/.*: not a safetensors file: no header in its 0 bytes"),
    (damage_garbage, r"vae/.*: not a safetensors file: no header in its 4096 bytes"),
    (damage_lfs_pointer, r"text_encoder/model\.safetensors: is a git-lfs pointer.*git lfs pull"),
    (damage_header_text, r"not a safetensors file: its header is not JSON"),
    (damage_header_list, r"not a safetensors file: its header is not a JSON object"),
    (damage_entry, r"bad header: tensor 'a'\.data_offsets is missing"),
    (damage_shape, r"bad header: tensor 'a' takes 4 bytes, its shape 8"),
    (damage_gap, r"bad header: tensor 'a' starts at \d+, expected \d+"),
    (damage_trailing, r"vae/.*: it holds \d+ bytes, its header lists \d+"),
    (damage_number_of_tensors, r"vae/.*: its header lists 100001 tensors, expected at most 100000"),
    (damage_long_header, r"vae/.*: its header takes 25000001 bytes, expected at most 25000000"),
    (damage_dtype, r"""tensor 'a' has dtype "F6_E3M2", expected BF16, F16 or F32"""),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGED_FILES, ids=lambda value: getattr(value, "__name__", ""))
def test_damaged_weight_file(copied: Callable[..., Path], damage: Callable[[Path], None], message: str) -> None:
    folder = copied()
    damage(folder)
    with pytest.raises(QwenImageError, match=message) as raised:
        Checkpoint.open(folder)
    assert "\n" not in str(raised.value)


def test_damaged_shards(copied: Callable[..., Path]) -> None:
    folder = copied(max_shard_size="500KB")
    part = folder / "text_encoder"
    index = part / "model.safetensors.index.json"
    weight_map: dict[str, str] = json.loads(index.read_text())["weight_map"]
    name, shard = next(iter(weight_map.items()))
    total = len(set(weight_map.values()))

    def refused(message: str) -> None:
        with pytest.raises(QwenImageError, match=message):
            Checkpoint.open(folder)

    edit_json(index, "weight_map", value=weight_map | {"extra.weight": shard})
    refused(rf'model\.safetensors\.index\.json: does not agree with {shard}: tensor "extra\.weight" is absent from it')
    edit_json(index, "weight_map", value={key: file for key, file in weight_map.items() if key != name})
    refused(rf"does not agree with {shard}: tensor .{name}. is stored but not listed there")
    edit_json(index, "weight_map", value=weight_map | {name: "../model_index.json"})
    refused(r"names the file .\.\./model_index\.json., expected one in the same folder")
    edit_json(index, "weight_map", value=...)
    refused(r"no 'weight_map' of tensor names to files")
    index.write_text("{")
    refused(r"model\.safetensors\.index\.json: not JSON")
    index.write_text(json.dumps({"weight_map": weight_map}))
    (part / shard).rename(part / "model.safetensors")
    refused(r"holds both model\.safetensors and model\.safetensors\.index\.json")
    (part / "model.safetensors").unlink()
    refused(rf"text_encoder: 1 of {total} shards missing: {shard}")
    index.unlink()
    refused(r"text_encoder: no weights, expected model\.safetensors or .*\(found model-0000\d-of-")


@pytest.mark.parametrize("part", ["transformer", "text_encoder", "vae", "scheduler", "processor"])
def test_missing_folder(copied: Callable[..., Path], part: str) -> None:
    folder = copied()
    shutil.rmtree(folder / part)
    with pytest.raises(QwenImageError, match=rf"incomplete: no folder {part}/$"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    "file",
    ["transformer/config.json", "text_encoder/config.json", "vae/config.json", "scheduler/scheduler_config.json"],
)
def test_missing_or_broken_config(copied: Callable[..., Path], file: str) -> None:
    folder = copied()
    (folder / file).write_text("[]")
    with pytest.raises(QwenImageError, match=rf"{file}: holds an empty list, expected a JSON object"):
        Checkpoint.open(folder)
    (folder / file).write_bytes(b"\xff{}")
    with pytest.raises(QwenImageError, match=rf"{file}: not JSON"):
        Checkpoint.open(folder)
    (folder / file).unlink()
    with pytest.raises(QwenImageError, match=rf"{file}: cannot be read .*incomplete"):
        Checkpoint.open(folder)


def test_another_architecture(copied: Callable[..., Path]) -> None:
    folder = copied()
    index = folder / "model_index.json"
    edit_json(index, "transformer", value=["diffusers", "QwenImageTransformer2DModel"])
    with pytest.raises(QwenImageError, match=r"key 'transformer' is .*QwenImageTransformer2DModel.*, expected \["):
        Checkpoint.open(folder)
    edit_json(index, "_class_name", value="QwenImagePipeline")
    with pytest.raises(QwenImageError, match=r"'_class_name' is .QwenImagePipeline., expected 'QwenImage21Pipeline'"):
        Checkpoint.open(folder)
    index.unlink()
    with pytest.raises(QwenImageError, match=r"no model_index\.json, expected a checkpoint in the diffusers layout"):
        Checkpoint.open(folder)


def test_components_of_two_models(copied: Callable[..., Path], random_checkpoint: Callable[..., Path]) -> None:
    folder = copied()
    shutil.rmtree(folder / "vae")
    shutil.copytree(random_checkpoint("odd") / "vae", folder / "vae")
    with pytest.raises(QwenImageError, match="'in_channels' is 16, expected 12, the VAE's z_dim"):
        Checkpoint.open(folder)


def test_no_such_path_and_single_file(tmp_path: Path) -> None:
    with pytest.raises(QwenImageError, match="does not exist, expected a folder"):
        Checkpoint.open(tmp_path / "nothing")
    with pytest.raises(QwenImageError, match="does not exist, expected a folder"):
        Checkpoint.open("nothing")
    single = tmp_path / "model.safetensors"
    single.write_bytes(b"")
    with pytest.raises(QwenImageError, match=r"is a single file, expected a folder.*the file with --transformer"):
        Checkpoint.open(single)


def test_only_bin_weights(copied: Callable[..., Path]) -> None:
    folder = copied()
    path = folder / "vae/diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".bin"))
    with pytest.raises(QwenImageError, match=r"vae: no weights, expected .* \(found diffusion_pytorch_model\.bin\)"):
        Checkpoint.open(folder)
