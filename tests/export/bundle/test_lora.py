"""Bundles with adapters merged into their weights: what they hold, what they record, what they are compared with."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.export.bundle import network_folder
from qwen_image_engine.export.bundle.bundle import export_bundle
from qwen_image_engine.export.verify.parity import verify_bundle
from qwen_image_engine.export.verify.recording import Case
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.lora.file import LoraFile
from qwen_image_engine.reference.pipeline import reference_pipeline
from qwen_image_engine.runtime.bundle.manifest import read_manifest
from qwen_image_engine.runtime.bundle.manifest_entries import LoraEntry
from qwen_image_engine.runtime.cli.main import main
from qwen_image_engine.runtime.pipeline import QwenImage
from qwen_image_engine.runtime.system.files import file_sha256
from tests.support.edit_checkpoint import edit_tensors
from tests.support.lora import factors, weights, write_lora

QUICK = (Case("quick", "a red circle", 64, 32),)
WEIGHTS = "transformer/weights.safetensors"
WITHOUT = ("vision", "vae_encoder")


@pytest.fixture(scope="module")
def checkpoint(random_checkpoint: Callable[..., Path]) -> Path:
    return random_checkpoint(dtype="bfloat16")


@pytest.fixture(scope="module")
def loras(checkpoint: Path, tmp_path_factory: Any) -> list[LoraFile]:
    folder = tmp_path_factory.mktemp("loras")
    return [
        LoraFile(write_lora(folder / "style.safetensors", factors(checkpoint), alpha=8.0), 0.8),
        LoraFile(
            write_lora(folder / "detail.safetensors", factors(checkpoint, ["img_mlp.out"], seed=1), alpha=4.0), -0.5
        ),
    ]


@pytest.fixture(scope="module")
def merged(checkpoint: Path, loras: list[LoraFile], tmp_path_factory: Any) -> Path:
    """The same as a checkpoint of its own, its merged weights in float32."""
    folder = shutil.copytree(checkpoint, tmp_path_factory.mktemp("merged") / "model")
    component = Checkpoint.open(checkpoint, loras=loras).components["transformer"]
    tensors = {name: component.read(name).clone() for name in component.tensors}
    save_file(tensors, folder / "transformer" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, loras: list[LoraFile], tmp_path_factory: Any) -> Path:
    """In fp32; read-only."""
    folder = tmp_path_factory.mktemp("fp32") / "bundle"
    export_bundle(Checkpoint.open(checkpoint, loras=loras), folder)
    return folder


@pytest.mark.parametrize(("target", "precision"), [("cpu", "fp32"), ("cpu", "int8"), ("tensorrt", "bf16")])
def test_weights_are_those_of_a_merged_checkpoint(
    checkpoint: Path, loras: list[LoraFile], merged: Path, bundle: Path, tmp_path: Path, target: str, precision: str
) -> None:
    opened = Checkpoint.open(checkpoint, loras=loras)
    options: dict[str, Any] = {"target": target, "precision": precision, "without": WITHOUT}
    if precision != "fp32":  # the transformer is what they are about
        bundle = tmp_path / "lora"
        export_bundle(opened, bundle, **options)
    export_bundle(merged, tmp_path / "merged", **options)
    found, expected = (load_file(folder / WEIGHTS) for folder in (bundle, tmp_path / "merged"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    if precision == "bf16":
        query = "transformer_blocks.0.attn.to_q.weight"
        assert torch.equal(found[query], opened.components["transformer"].read(query).bfloat16())
        assert not torch.equal(found[query], weights(checkpoint)[query])
        assert torch.equal(found["img_in.weight"], weights(checkpoint)["img_in.weight"])


def test_static_scales_go_with_a_calibration_of_the_same_weights(
    checkpoint: Path, loras: list[LoraFile], merged: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle\n", encoding="utf-8")
    asked = ("--prompts", str(tmp_path / "prompts.txt"), "--steps", "2", "--size", "64x64")
    static = ("--target", "tensorrt-twin", "--precision", "fp8", "--without", "vision", "--calibration")
    adapted = ("-m", str(checkpoint), *(word for lora in loras for word in ("--lora", str(lora))))
    for name, source in (("lora", adapted), ("merged", ("-m", str(merged)))):
        calibration = str(tmp_path / f"calibration-{name}")
        assert main(["calibrate", *source, calibration, *asked]) == 0
        assert main(["export", *source, str(tmp_path / name), *static, calibration]) == 0
    assert file_sha256(tmp_path / "lora" / WEIGHTS) == file_sha256(tmp_path / "merged" / WEIGHTS)
    text = fails(1, "export", *adapted[:2], tmp_path / "plain", *static, tmp_path / "calibration-lora")
    assert "was made from the checkpoint" in text
    assert "style.safetensors:0.8 + detail.safetensors:-0.5" in text
    text = fails(1, "export", *adapted, tmp_path / "other", *static, tmp_path / "calibration-merged")
    assert f"qwen-image calibrate {' '.join(adapted)} NEW_FOLDER" in text


def test_pictures_are_those_of_the_reference(checkpoint: Path, loras: list[LoraFile], bundle: Path) -> None:
    asked: dict[str, Any] = {"width": 64, "height": 64, "steps": 4, "seed": 3}
    with QwenImage.load(bundle) as engines:
        *_, found = engines.sample(engines.encode("a red circle"), **asked)
    latents = []
    for source in (Checkpoint.open(checkpoint, loras=loras), checkpoint):
        with reference_pipeline(source) as reference:
            *_, last = reference.sample(reference.encode("a red circle"), **asked)
            latents.append(torch.from_numpy(last.latents))
    expected, plain = latents
    error = (torch.from_numpy(found.latents) - expected).norm() / expected.norm()
    assert error < 1e-4  # four steps of networks within 1e-5
    assert (plain - expected).norm() / expected.norm() > 100 * error


def test_the_manifest_records_name_hash_and_scale(
    loras: list[LoraFile], bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = tuple(LoraEntry(lora.path.name, str(lora.path), file_sha256(lora.path), lora.scale) for lora in loras)
    manifest = read_manifest(bundle)
    assert manifest.loras == entries
    assert manifest.flags.endswith(f"--lora {loras[0].path}:0.8 --lora {loras[1].path}:-0.5")
    assert main(["inspect", str(bundle)]) == 0
    text = capsys.readouterr().out
    assert f"lora {loras[0].path} at 0.8, sha256 {entries[0].sha256}" in text
    document = json.loads((bundle / "manifest.json").read_text())
    del document["loras"], document["checkpoint"]["transformer_file"]  # as bundles without them were written
    older = bundle.parent / "older"
    older.mkdir()
    (older / "manifest.json").write_text(json.dumps(document))
    assert read_manifest(older) == replace(manifest, loras=())


def test_plan_and_inspect_count_what_is_merged(
    checkpoint: Path, loras: list[LoraFile], bundle: Path, capsys: pytest.CaptureFixture[str], fails: Callable[..., str]
) -> None:
    flags = [word for lora in loras for word in ("--lora", str(lora))]
    assert main(["plan", "-m", str(checkpoint), "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert main(["plan", "-m", str(checkpoint), *flags, "--json"]) == 0
    text, notes = capsys.readouterr()
    plan = json.loads(text)
    described = plan["checkpoint"]["loras"]
    assert [(item["path"], item["scale"]) for item in described] == [(str(lora.path), lora.scale) for lora in loras]
    assert [item["factors"] for item in described] == [[2.0], [1.0]]
    assert notes == ""
    assert plan["checkpoint"]["merged_weights"] == 14
    assert plan["networks"] == plain["networks"]
    assert main(["inspect", str(checkpoint), *flags]) == 0
    text = capsys.readouterr().out
    assert (
        f"lora {loras[0].path} at 0.8\n  keys: diffusers; 14 weights of rank 4\n  its own scale: 2, stated by its"
        in text
    )
    assert f"lora {loras[1].path} at -0.5" in text
    assert "--lora: " in fails(2, "inspect", bundle, *flags)


def test_notes_on_adapters_go_to_standard_error(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_lora(tmp_path / "style.safetensors", factors(checkpoint))
    assert main(["inspect", str(checkpoint), "--lora", str(path), "--json"]) == 0
    text, notes = capsys.readouterr()
    (described,) = json.loads(text)["loras"]
    assert notes == f"qwen-image: note: {described['notes'][0]}\n"
    assert "style.safetensors: states no alpha: merged at 1.0 times the given scale" in notes
    assert main(["inspect", str(checkpoint), "--lora", str(path)]) == 0
    assert "  its own scale: 1, stated nowhere: alpha is taken as the rank\n" in capsys.readouterr().out


def test_only_the_transformer_is_exported_again(
    checkpoint: Path, loras: list[LoraFile], bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    traced = []
    real = network_folder.trace
    monkeypatch.setattr(
        network_folder, "trace", lambda source, name, dtype: traced.append(name) or real(source, name, dtype)
    )
    before = read_manifest(folder)
    assert export_bundle(Checkpoint.open(checkpoint, loras=loras), folder) == before
    assert traced == []
    after = export_bundle(Checkpoint.open(checkpoint, loras=[loras[0], replace(loras[1], scale=0.5)]), folder)
    assert traced == ["prefix", "prefix_image", "step"]
    assert after.checkpoint.weights_sha256 != before.checkpoint.weights_sha256


def test_verify_compares_with_the_merged_reference(
    checkpoint: Path, loras: list[LoraFile], bundle: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    assert verify_bundle(folder, cases=QUICK).passed
    with pytest.raises(QwenImageError, match=r"was not made from .* weights .* name the right one with .*--lora"):
        verify_bundle(folder, checkpoint, loras=loras[:1], cases=QUICK)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["loras"][1]["path"] = str(tmp_path / "detail.safetensors")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    text = fails(1, "verify", folder, "-m", checkpoint)
    assert "detail.safetensors: does not exist" in text
    assert text.endswith("say where the bundle's checkpoint is with --lora")
    assert verify_bundle(folder, loras=loras, cases=QUICK).passed
    shutil.copyfile(loras[1].path, tmp_path / "detail.safetensors")
    edit_tensors(tmp_path / "detail.safetensors", lambda tensors: next(iter(tensors.values())).mul_(2))
    assert "was not made from" in fails(1, "verify", folder)


def test_links_are_refused(checkpoint: Path, loras: list[LoraFile], output: Path, fails: Callable[..., str]) -> None:
    with pytest.raises(UsageError, match="--weights link with --lora: merged weights are no bytes of"):
        export_bundle(Checkpoint.open(checkpoint, loras=loras), output / "bundle", weights="link")
    flags = ("-m", checkpoint, "--lora", loras[0].path, "--weights", "link")
    assert "use --weights copy" in fails(2, "export", *flags, output / "bundle")
    assert "use --weights copy" in fails(2, "plan", *flags)


def test_a_refusal_leaves_nothing(checkpoint: Path, output: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    path = write_lora(tmp_path / "style.safetensors", factors(checkpoint), alpha=4.0)
    edit_tensors(path, lambda tensors: tensors.update({"transformer.blocks.0.q.lora_A.weight": torch.ones(4, 96)}))
    named = "1 of no linear of the transformer (transformer.blocks.0.q.lora_A.weight); 14 linears are matched"
    for verb, out in (("export", output / "bundle"), ("plan", output / "bundle")):
        assert named in fails(1, verb, "-m", checkpoint, "--lora", path, out)
    assert "expected a finite number" in fails(
        2, "export", "-m", checkpoint, "--lora", f"{path}:nan", output / "bundle"
    )
    edit_tensors(
        path,
        lambda tensors: (
            tensors.pop("transformer.blocks.0.q.lora_A.weight"),
            tensors["transformer.transformer_blocks.0.attn.to_k.lora_A.weight"].fill_(float("inf")),
        ),
    )
    assert "not finite" in fails(1, "export", "-m", checkpoint, "--lora", path, output / "bundle")
