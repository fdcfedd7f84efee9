"""Weights that are NaN, infinite or beyond the precision: refused at export by name, and named by `verify`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.export.verify.parity import verify_bundle
from qwen_image_engine.export.verify.recording import Case
from qwen_image_engine.export.verify.result import verdict_text
from qwen_image_engine.reference.storage.tensor_file import read_header
from qwen_image_engine.runtime.bundle.files import describe_file
from qwen_image_engine.runtime.bundle.manifest import read_manifest, write_manifest
from tests.support.edit_checkpoint import edit_tensors

QUICK = (Case("quick", "a red circle", 64, 32),)
LINEAR, NORM = (
    "model.language_model.layers.0.mlp.up_proj.weight",
    "model.language_model.layers.0.input_layernorm.weight",
)
STEP = "transformer_blocks.0.img_mlp.out.weight"


@pytest.fixture
def damaged(random_checkpoint: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """`damaged(file, tensor, value)`: a checkpoint with a value in the place of the tensor's element 5."""

    def damage(file: str, tensor: str, value: float) -> Path:
        folder = shutil.copytree(random_checkpoint(), tmp_path / "model")
        edit_tensors(folder / file, lambda tensors: tensors[tensor].view(-1)[5:6].fill_(value))
        return folder

    return damage


@pytest.mark.parametrize(
    ("flags", "tensor", "value"),
    [
        ((), LINEAR, "nan"),
        ((), NORM, "inf"),
        (("--precision", "int8"), LINEAR, "-inf"),
        (("--precision", "int8"), NORM, "nan"),
        (("--target", "cuda", "--precision", "bf16"), LINEAR, "nan"),
    ],
)
def test_export_names_the_tensor(
    damaged: Callable[..., Path],
    output: Path,
    fails: Callable[..., str],
    trace_once: None,
    flags: tuple[str, ...],
    tensor: str,
    value: str,
) -> None:
    folder = damaged("text_encoder/model.safetensors", tensor, float(value))
    message = fails(1, "export", "-m", folder, output / "bundle", "--without", "vision", *flags)
    place = "[0, 5]" if tensor == LINEAR else "[5]"
    assert f"tensor '{tensor}' has values that are not finite, the first {value} at {place}" in message


def test_linked_weights_are_checked_too(
    damaged: Callable[..., Path], output: Path, fails: Callable[..., str], trace_once: None
) -> None:
    folder = damaged("transformer/diffusion_pytorch_model.safetensors", STEP, float("nan"))
    message = fails(1, "export", "-m", folder, output / "bundle", "--without", "vision", "--weights", "link")
    assert f"tensor '{STEP}' has values that are not finite, the first nan at [0, 5]" in message


def test_export_refuses_what_fp16_cannot_hold(
    damaged: Callable[..., Path], output: Path, fails: Callable[..., str], trace_once: None
) -> None:
    folder = damaged("text_encoder/model.safetensors", NORM, 70000.0)
    flags = ("--target", "cuda", "--precision", "fp16", "--without", "vision")
    message = fails(1, "export", "-m", folder, output / "bundle", *flags)
    assert f"tensor '{NORM}' has a value at [5] that float16 cannot hold (its largest is 65504)" in message


def test_verify_names_a_weight_of_the_checkpoint(
    exported: Callable[..., Path], damaged: Callable[..., Path], tmp_path: Path
) -> None:
    folder = damaged("transformer/diffusion_pytorch_model.safetensors", STEP, float("nan"))
    bundle = shutil.copytree(exported(without=("vision",)), tmp_path / "bundle")
    with pytest.raises(QwenImageError, match=rf"'{STEP}' has values .*; of .*bundle, prefix, step compute with it$"):
        verify_bundle(bundle, folder, cases=QUICK)


@pytest.mark.parametrize("network", ["vae", "text_encoder"])
def test_verify_names_the_component_and_the_weight_of_the_bundle(
    exported: Callable[..., Path], tmp_path: Path, network: str
) -> None:
    bundle = shutil.copytree(exported(without=("vision",)), tmp_path / "bundle")
    name = f"{network}/weights.safetensors"
    tensor = next(name for name in read_header(bundle / name) if "decoder.conv_in" in name or "up_proj" in name)
    place = read_header(bundle / name)[tensor]
    with (bundle / name).open("r+b") as file:
        file.seek(place.offset)
        file.write(np.full(place.elements, np.nan, np.float32).tobytes())
    manifest = read_manifest(bundle)
    manifest.files[name] = describe_file(bundle / name)  # type: ignore[index]
    write_manifest(bundle, manifest)
    expected = f"tensor {tensor!r} of {name} is not finite"
    if network == "text_encoder":
        with pytest.raises(QwenImageError, match=rf"come first out of text_encoder \(quick\): {expected}$"):
            verify_bundle(bundle, cases=QUICK)
        return
    result = verify_bundle(bundle, cases=QUICK)
    assert not result.passed
    assert f"values that are not finite come first out of vae_decoder_mid (quick): {expected}" in verdict_text(result)
    found = json.loads(json.dumps(result.to_json(), allow_nan=False))["not_finite"]
    assert found == {"component": "vae_decoder_mid", "case": "quick", "file": name, "tensor": tensor}
