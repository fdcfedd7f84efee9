"""Variants of weight files, as diffusers and transformers write and read them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLQwenImage21, QwenImage21Transformer2DModel
from transformers import Qwen3VLForConditionalGeneration

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.checkpoint.recorded import open_recorded
from qwen_image_engine.runtime.bundle.manifest import read_manifest
from qwen_image_engine.runtime.cli.main import main

NETWORKS = {
    "transformer": QwenImage21Transformer2DModel,
    "vae": AutoencoderKLQwenImage21,
    "text_encoder": Qwen3VLForConditionalGeneration,
}


def save_variant(folder: Path, network: str, *, shards: bool = False, only: bool = False) -> None:
    """Write the bf16 variant of a network, with its own library; with `only`, without the plain files beside it."""
    place = folder / network
    model = NETWORKS[network].from_pretrained(place, dtype=torch.float32).bfloat16()
    plain = {path: path.read_bytes() for path in place.iterdir()}
    shutil.rmtree(place)
    model.save_pretrained(place, variant="bf16", max_shard_size="500KB" if shards else "5GB")
    for path, content in plain.items():
        if path.suffix == ".json" or not only:
            path.write_bytes(content)


@pytest.mark.parametrize("shards", [False, True])
def test_variants_of_every_network(copied: Callable[..., Path], shards: bool) -> None:
    folder = copied()
    plain = Checkpoint.open(folder)
    for network in NETWORKS:
        save_variant(folder, network, shards=shards)
    assert Checkpoint.open(folder).weights_sha256() == plain.weights_sha256()
    checkpoint = Checkpoint.open(folder, variant="bf16")
    for network, stored in checkpoint.components.items():
        assert stored.dtypes.keys() == {"BF16"}
        assert all("bf16" in file.name for file in stored.files)
        assert stored.tensors.keys() == plain.components[network].tensors.keys()
        assert len(stored.files) > 1 or not shards or network == "vae"
    assert checkpoint.config_sha256() == plain.config_sha256()
    assert checkpoint.flags == f"-m {folder} --variant bf16"
    assert checkpoint.name == f"{folder.name} (bf16 files)"


def test_the_former_name_of_an_index(copied: Callable[..., Path]) -> None:
    folder = copied()
    save_variant(folder, "transformer", shards=True, only=True)
    stem = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    stem.with_name(f"{stem.name}.index.bf16.json").rename(stem.with_name(f"{stem.name}.bf16.index.json"))
    assert Checkpoint.open(folder, variant="bf16").components["transformer"].dtypes.keys() == {"BF16"}


def test_networks_without_the_variant_are_read_as_they_are(copied: Callable[..., Path]) -> None:
    folder = copied()
    save_variant(folder, "transformer", only=True)
    checkpoint = Checkpoint.open(folder, variant="bf16")
    assert {name: [*stored.dtypes] for name, stored in checkpoint.components.items()} == {
        "transformer": ["BF16"],
        "text_encoder": ["F32"],
        "vae": ["F32"],
    }


def test_a_variant_that_is_not_named_or_not_there(copied: Callable[..., Path], fails: Callable[..., str]) -> None:
    folder = copied()
    with pytest.raises(QwenImageError, match=r"no weights of the variant 'bf16', .*\(variants found: none\)$"):
        Checkpoint.open(folder, variant="bf16")
    save_variant(folder, "transformer", shards=True, only=True)
    message = fails(1, "plan", "-m", folder)
    assert message.endswith(", and there are the variants bf16; choose one with --variant bf16")
    assert "(variants found: bf16)" in fails(1, "inspect", folder, "--variant", "fp16")


def test_a_bundle_records_the_variant(
    copied: Callable[..., Path], tmp_path: Path, trace_once: None, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied()
    for network in NETWORKS:
        save_variant(folder, network, only=True)
    bundle = tmp_path / "bundle"
    assert main(["export", "-m", str(folder), str(bundle), "--variant", "bf16", "--without", "vision"]) == 0
    manifest = read_manifest(bundle)
    assert manifest.checkpoint.variant == "bf16"
    assert manifest.flags == f"-m {folder} --variant bf16"
    assert open_recorded(manifest, None).weights_sha256() == manifest.checkpoint.weights_sha256
    document = json.loads((bundle / "manifest.json").read_text())
    del document["checkpoint"]["variant"]  # as bundles were written before
    (bundle / "manifest.json").write_text(json.dumps(document))
    assert read_manifest(bundle).checkpoint.variant is None
    capsys.readouterr()
    assert main(["inspect", str(folder), "--variant", "bf16", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["variant"] == "bf16"
