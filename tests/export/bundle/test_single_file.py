"""A transformer in one file of ComfyUI's: exported, linked, calibrated and verified as a folder is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.export.bundle.bundle import export_bundle
from qwen_image_engine.export.verify.parity import verify_bundle
from qwen_image_engine.export.verify.recording import Case
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.runtime.bundle.files import verify_files
from qwen_image_engine.runtime.bundle.manifest import read_manifest
from qwen_image_engine.runtime.cli.main import main
from qwen_image_engine.runtime.system.files import file_sha256
from tests.support.single_file import write_single_file

QUICK = (Case("quick", "a red circle", 64, 32),)
WEIGHTS = "transformer/weights.safetensors"
WITHOUT = ("vision", "vae_encoder")


@pytest.fixture(scope="module")
def single_file(random_checkpoint: Callable[..., Path], tmp_path_factory: Any) -> Path:
    return write_single_file(
        random_checkpoint(dtype="bfloat16"), tmp_path_factory.mktemp("comfy") / "qwen_image_2.1_bf16.safetensors"
    )


@pytest.mark.parametrize(("target", "precision"), [("cpu", "fp32"), ("cpu", "int8"), ("tensorrt", "bf16")])
def test_bundles_have_the_weights_of_the_folder_form(
    random_checkpoint: Callable[..., Path],
    exported: Callable[..., Path],
    single_file: Path,
    tmp_path: Path,
    target: str,
    precision: str,
) -> None:
    folder, expected = random_checkpoint(dtype="bfloat16"), tmp_path / "folder"
    without = () if precision == "fp32" else WITHOUT  # the transformer is what they are about
    if precision == "fp32":
        expected = exported(dtype="bfloat16")
    else:
        export_bundle(folder, expected, target=target, precision=precision, without=without)
    single = Checkpoint.open(folder, transformer_file=single_file)
    manifest = export_bundle(single, tmp_path / "single", target=target, precision=precision, without=without)
    assert file_sha256(tmp_path / "single" / WEIGHTS) == file_sha256(expected / WEIGHTS)
    assert manifest.checkpoint.transformer_file == str(single_file)
    assert manifest.checkpoint.weights_sha256 == single.weights_sha256()
    assert read_manifest(tmp_path / "single") == manifest


def test_linked_weights_are_ranges_of_the_file(
    random_checkpoint: Callable[..., Path], single_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = random_checkpoint(dtype="bfloat16")
    flags = ["-m", str(folder), "--transformer", str(single_file), "--weights", "link"]
    assert main(["plan", *flags, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bundle_bytes"] == 0
    bundle = tmp_path / "bundle"
    assert main(["export", *flags, "--without", "vision", "--", str(bundle)]) == 0
    assert [path.name for path in bundle.glob("transformer/*.safetensors")] == [single_file.name]
    assert (bundle / "transformer" / single_file.name).samefile(single_file)
    assert verify_files(bundle, read_manifest(bundle)) == []
    assert verify_bundle(bundle, cases=QUICK).passed
    assert main(["inspect", str(bundle)]) == 0
    assert str(single_file) in capsys.readouterr().out


def test_inspect_and_errors_name_the_file(
    random_checkpoint: Callable[..., Path],
    exported: Callable[..., Path],
    single_file: Path,
    tmp_path: Path,
    fails: Callable[..., str],
    capsys: Any,
) -> None:
    folder, bundle = random_checkpoint(dtype="bfloat16"), exported(dtype="bfloat16")
    assert main(["inspect", str(folder), "--transformer", str(single_file)]) == 0
    assert str(single_file) in capsys.readouterr().out
    text = fails(1, "export", "-m", single_file, tmp_path / "bundle")
    assert "name the folder of the rest here (-m) and the file with --transformer" in text
    assert "does not exist" in fails(1, "plan", "-m", folder, "--transformer", tmp_path / "absent.safetensors")
    assert "--transformer: " in fails(2, "inspect", bundle, "--transformer", single_file)


def test_verify_wants_the_same_file(random_checkpoint: Callable[..., Path], single_file: Path, tmp_path: Path) -> None:
    folder = random_checkpoint(dtype="bfloat16")
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(single_file.read_bytes())
    bundle = tmp_path / "bundle"
    export_bundle(Checkpoint.open(folder, transformer_file=moved), bundle, without=WITHOUT)
    other = write_single_file(folder, tmp_path / "other.safetensors", prefix="")
    with pytest.raises(QwenImageError, match=r"was not made from .* weights"):
        verify_bundle(bundle, transformer_file=other, cases=QUICK)
    moved.unlink()
    with pytest.raises(QwenImageError, match=r"does not exist.*; say where .* with --transformer$"):
        verify_bundle(bundle, folder, cases=QUICK)
    assert verify_bundle(bundle, folder, transformer_file=single_file, cases=QUICK).passed


def test_a_calibration_goes_with_the_file(
    random_checkpoint: Callable[..., Path], single_file: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    checkpoint = ("-m", str(random_checkpoint(dtype="bfloat16")), "--transformer", str(single_file))
    (tmp_path / "prompts.txt").write_text("a red circle\n", encoding="utf-8")
    calibration = str(tmp_path / "calibration")
    asked = ("--prompts", str(tmp_path / "prompts.txt"), "--steps", "2", "--size", "64x64")
    assert main(["calibrate", *checkpoint, calibration, *asked]) == 0
    static = ("--target", "tensorrt-twin", "--precision", "fp8", "--without", "vision", "--calibration", calibration)
    assert main(["export", *checkpoint, str(tmp_path / "bundle"), *static]) == 0
    assert "F8_E4M3" in (tmp_path / "bundle" / WEIGHTS).read_bytes()[:2000].decode("latin-1")
    assert load_file(tmp_path / "bundle" / WEIGHTS)
    text = fails(1, "export", *checkpoint[:2], tmp_path / "folder", *static)
    assert f"with {single_file.name}" in text
