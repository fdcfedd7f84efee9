"""Reference images through a bundle: against the reference pipeline, without what reads them, and bidirectional."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_image_engine.engines.backends import load_engine
from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.export.bundle.bundle import export_bundle
from qwen_image_engine.export.verify.parity import verify_bundle
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.pipeline import engine_loader, reference_pipeline
from qwen_image_engine.runtime.bundle.manifest import read_manifest
from qwen_image_engine.runtime.cli.main import main
from qwen_image_engine.runtime.component_pool import Memory
from qwen_image_engine.runtime.images.picture import Picture
from qwen_image_engine.runtime.model.vision import interpolation, vision_rotary_tables
from qwen_image_engine.runtime.pipeline import QwenImage
from tests.support.edit_checkpoint import edit_json
from tests.support.images import patches

IMAGES = (patches(400, 300), patches(300, 420, "RGB", 1))
EDIT: dict[str, Any] = {
    "negative_prompt": "grey",
    "guidance": 2.0,
    "references": IMAGES,
    "reference_resolution": 288,
    "width": 96,
    "height": 64,
    "steps": 2,
    "seed": 5,
}
TEXT: dict[str, Any] = {"width": 96, "height": 64, "steps": 2, "seed": 5}
WITHOUT = ("vision", "vae_encoder")

# fp32 in another order, through a few networks one after the other; a wrong row or mask is 1e-2 and more.
LIMIT = 1e-4


def error(found: list[Picture], expected: list[Picture]) -> float:
    one, other = (np.stack([picture.latents for picture in pictures]) for pictures in (found, expected))
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", ["narrow", "odd"])
def test_one_tower_serves_every_size(
    random_checkpoint: Callable[..., Path],
    exported: Callable[..., Path],
    backend: str,
    name: str,
    within: Callable[[str, float, float], None],
) -> None:
    checkpoint = Checkpoint.open(random_checkpoint(name))
    reference = engine_loader(checkpoint)("vision")
    entry = read_manifest(exported(name)).components["vision"]
    engine = load_engine(backend, exported(name) / entry.model, entry.contract)
    config, rng = checkpoint.vision, np.random.default_rng(0)
    for rows, columns in ((2, 2), (8, 8), (4, 22), (18, 6), (14, 12)):
        indices, weights = interpolation(rows, columns, config.position_side)
        cos, sin = vision_rotary_tables(rows, columns, config.head_dim, config.rope_theta)
        pixels = rng.uniform(-1, 1, (1, rows * columns, 1536)).astype(np.float32)
        inputs = {"patches": pixels, "indices": indices, "weights": weights, "cos": cos, "sin": sin}
        found, expected = engine.run(inputs), reference.run(inputs)
        for key, values in expected.items():
            relative = float(np.linalg.norm(found[key] - values) / np.linalg.norm(values))
            within(f"vision on {backend} at five sizes against torch, relative L2", relative, 1e-5)


@pytest.mark.parametrize("attention", [None, "bidirectional"])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_an_edit_is_the_reference_pipelines(
    random_checkpoint: Callable[..., Path],
    exported: Callable[..., Path],
    backend: str,
    attention: str | None,
    within: Callable[[str, float, float], None],
) -> None:
    expected = reference_pipeline(Checkpoint.open(random_checkpoint("narrow"), attention=attention))
    figure = f"an edit on {backend} against the reference pipeline, relative L2"
    memory: Memory = "sequential" if backend == "onnxruntime" else "resident"  # OpenVINO loads a graph in half a second
    with QwenImage.load(exported("narrow", attention=attention), engine=backend, memory=memory) as pipeline:
        assert pipeline.facts == expected.facts
        for arguments in (EDIT, {**EDIT, "num_images": 2, "references": IMAGES[:1]}, TEXT):
            found = pipeline.generate("make it 红色", **arguments)
            within(figure, error(found, expected.generate("make it 红色", **arguments)), LIMIT)


def test_without_what_reads_references(
    random_checkpoint: Callable[..., Path], exported: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    whole, less = exported("narrow"), exported("narrow", without=WITHOUT)
    manifest = read_manifest(less)
    assert list(manifest.components) == ["text_encoder", "prefix", "step", "vae_decoder_mid", "vae_decoder_up"]
    assert not (less / "vision").exists()
    assert manifest.absent_for_references == ("vision", "vae_encoder", "prefix_image")
    sizes = [(folder / "vae" / "weights.safetensors").stat().st_size for folder in (whole, less)]
    assert sizes[1] < 0.9 * sizes[0]
    drawn = []
    for folder in (whole, less):
        with QwenImage.load(folder, memory="sequential") as pipeline:
            drawn.append(pipeline.generate("a red circle", **TEXT)[0].latents)
    assert np.array_equal(*drawn)
    with QwenImage.load(less, memory="sequential") as pipeline:
        with pytest.raises(UsageError, match=r"no vision and no vae_encoder and no prefix_image.*--without"):
            pipeline.generate("a red circle", **EDIT)
        assert pipeline.timings.entries == []
    capsys.readouterr()
    words = [
        "plan",
        "-m",
        str(random_checkpoint("narrow")),
        "--json",
        *(word for name in WITHOUT for word in ("--without", name)),
    ]
    assert main(words) == 0
    plan = json.loads(capsys.readouterr().out)
    weights = sum(file.stat().st_size for file in less.rglob("*.safetensors"))
    assert plan["bundle_bytes"] <= weights <= plan["bundle_bytes"] + 100_000
    assert "vision" not in [network["network"] for network in plan["networks"]]
    assert main(["inspect", str(less)]) == 0
    assert "reference images: no" in capsys.readouterr().out


def test_what_else_cannot_be_left_out(
    random_checkpoint: Callable[..., Path], output: Path, fails: Callable[..., str]
) -> None:
    with pytest.raises(UsageError, match="--without step: only vision and vae_encoder"):
        export_bundle(random_checkpoint("narrow"), output / "bundle", without=["step"])
    assert "--without" in fails(2, "export", "-m", random_checkpoint("narrow"), output / "bundle", "--without", "step")


def test_a_bundle_without_vision_is_verified(exported: Callable[..., Path], tmp_path: Path) -> None:
    folder = shutil.copytree(exported("narrow", without=WITHOUT), tmp_path / "bundle")
    assert main(["verify", str(folder), "--output", str(tmp_path / "verify.json")]) == 0
    rows = json.loads((tmp_path / "verify.json").read_text())["components"]
    assert {case["case"] for row in rows for case in row["cases"]} == {"english", "chinese", "long"}
    assert not {row["component"] for row in rows} & {"vision", "vae_encoder", "prefix_image"}


def test_a_bidirectional_bundle_is_verified(exported: Callable[..., Path], tmp_path: Path) -> None:
    """The checkpoint's configuration says causal: what was asked for stands in the manifest."""
    folder = shutil.copytree(exported("narrow", attention="bidirectional"), tmp_path / "bundle")
    manifest = read_manifest(folder)
    assert manifest.checkpoint.attention == "bidirectional"
    assert manifest.flags.endswith("--attention bidirectional")
    assert manifest.absent_for_references == ()
    assert main(["verify", str(folder), "--output", str(tmp_path / "verify.json")]) == 0
    rows = {row["component"]: row for row in json.loads((tmp_path / "verify.json").read_text())["components"]}
    assert {"joint", "vision", "vae_encoder"} < rows.keys()
    assert not {"prefix", "prefix_image", "step"} & rows.keys()
    assert [case["case"] for case in rows["joint"]["cases"]] == ["english", "chinese", "long", "edit"]
    with pytest.raises(QwenImageError, match="was not made from"):
        verify_bundle(folder, attention="causal")


def test_attention_of_the_configuration(random_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    stated = shutil.copytree(random_checkpoint("narrow"), tmp_path / "stated")
    edit_json(stated / "transformer" / "config.json", "attention", value="bidirectional")
    edit_json(stated / "transformer" / "config.json", "causal_condition", value=False)
    asked = Checkpoint.open(random_checkpoint("narrow"), attention="bidirectional")
    found = reference_pipeline(stated).generate("a red circle", **EDIT)
    expected = reference_pipeline(asked).generate("a red circle", **EDIT)
    assert np.array_equal(found[0].latents, expected[0].latents)
    causal = reference_pipeline(random_checkpoint("narrow")).generate("a red circle", **EDIT)
    assert error(causal, expected) > 1e-3
