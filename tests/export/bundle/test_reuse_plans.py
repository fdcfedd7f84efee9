"""Engines after another export into their bundle: kept where nothing that they were built from has changed."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file, save_file

from qwen_image_engine.engines.plans.entry import PlanEntry
from qwen_image_engine.export.bundle.bundle import export_bundle
from qwen_image_engine.runtime.bundle.files import describe_file, verify_files
from qwen_image_engine.runtime.bundle.manifest import Manifest, read_manifest, write_manifest


def build(folder: Path) -> Manifest:
    """Give every component an engine."""
    (folder / "plans").mkdir()
    (folder / "plans" / "a.timing").write_bytes(b"timings")
    manifest = read_manifest(folder)
    plans, files = {}, {**manifest.files}
    for name in manifest.components:
        plans[name] = PlanEntry(f"plans/{name}.plan", "aa", "tensorrt", "11.4.0.106", ("9.0",), "A GPU", 13000, ())
        (folder / plans[name].file).write_bytes(name.encode())
        files[plans[name].file] = describe_file(folder / plans[name].file)
    write_manifest(
        folder,
        replace(manifest, files=files, plans={name: (plan,) for name, plan in plans.items()}, verify={"passed": True}),
    )
    return read_manifest(folder)


def test_engines_outlive_an_export_that_changes_nothing_of_theirs(
    bundle: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    source, made = bundle("narrow")
    output, checkpoint = tmp_path / "bundle", tmp_path / "checkpoint"
    shutil.copytree(made, output)
    shutil.copytree(source, checkpoint)
    before = build(output)
    assert export_bundle(source, output) == before == read_manifest(output)  # what was verified with them as well
    assert verify_files(output, before) == []
    file = checkpoint / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    tensors["quant_conv.bias"] += 1
    save_file(tensors, file, {"format": "pt"})
    after = export_bundle(checkpoint, output)
    assert set(after.plans) == {name for name in before.components if not name.startswith("vae")}
    assert after.verify is None
    assert verify_files(output, after) == []
    left = {path.name for path in (output / "plans").iterdir()}
    assert left == {"a.timing", *(f"{name}.plan" for name in after.plans)}
    (output / "plans" / "step.plan").unlink()
    assert set(export_bundle(checkpoint, output).plans) == set(after.plans) - {"step"}


def test_another_target_keeps_none(bundle: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    source, made = bundle("narrow")
    output = tmp_path / "bundle"
    shutil.copytree(made, output)
    build(output)
    manifest = export_bundle(source, output, target="tensorrt", precision="bf16")
    assert manifest.plans == {}
    assert [path.name for path in (output / "plans").iterdir()] == ["a.timing"]
