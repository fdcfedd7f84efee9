"""TensorRT's rules: kept by every exported graph, and each one broken is told by its name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest

from qwen_image_engine.export.bundle.network_folder import MODEL_FILES
from qwen_image_engine.export.checks.rule import Expected
from qwen_image_engine.export.checks.tensorrt_rules import RULES, SHARED_WITH_CUDA, broken_rules
from qwen_image_engine.runtime.bundle.manifest import read_manifest
from qwen_image_engine.runtime.cli.main import main
from tests.support.broken_graphs import ALSO, BROKEN, Change

Bundles = Callable[..., tuple[Path, Path]]


@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8"])
def test_every_graph_keeps_them(static_bundle: Bundles, precision: str) -> None:
    options = {"fp8_attention": True} if precision == "fp8" else {}
    folder = static_bundle("narrow", "tensorrt", precision, **options)[1]
    manifest = read_manifest(folder)
    for name, entry in manifest.components.items():
        assert broken_rules(ir.load(folder / entry.model), Expected.of(manifest, name)) == [], name


@pytest.mark.parametrize(
    ("rule", "precision", "component", "change"), [*((rule, *broken) for rule, broken in BROKEN.items()), *ALSO]
)
def test_a_broken_rule_is_told_by_its_name(
    static_bundle: Bundles, rule: str, precision: str, component: str, change: Change
) -> None:
    options = {"fp8_attention": True} if precision == "fp8a" else {}
    target = "cuda" if precision.startswith("cuda ") else "tensorrt"
    folder = static_bundle("narrow", target, precision.removeprefix("cuda ").removesuffix("a"), **options)[1]
    model = ir.load(folder / MODEL_FILES[component])
    expected = Expected.of(read_manifest(folder), component)
    change(model.graph)
    found = broken_rules(model, expected)
    assert rule in {item.rule for item in found}
    assert str(next(item for item in found if item.rule == rule)).startswith(f"{rule}: ")


def test_another_opset_is_told(static_bundle: Bundles) -> None:
    folder = static_bundle("narrow", "tensorrt", "bf16")[1]
    model = ir.load(folder / MODEL_FILES["step"])
    model.graph.opset_imports[""] = 18
    found = broken_rules(model, Expected.of(read_manifest(folder), "step"))
    assert {item.rule for item in found} == {"opset"}
    assert {*BROKEN, "opset"} == set(RULES)


def test_command(static_bundle: Bundles, bundle: Bundles, capsys: pytest.CaptureFixture[str]) -> None:
    folder = static_bundle("narrow", "tensorrt", "bf16")[1]
    assert main(["inspect", str(static_bundle("narrow", "tensorrt", "int8")[1])]) == 0
    text = capsys.readouterr().out
    assert "equalised with the linear before or after, smoothed with alpha" in text
    assert "calibration sha256 " in text
    assert main(["inspect", str(folder), "--check"]) == 0
    assert "✓ step" in capsys.readouterr().out
    folder = static_bundle("narrow", "cuda", "bf16")[1]
    assert main(["inspect", str(folder), "--check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rules"] == list(SHARED_WITH_CUDA)
    assert main(["inspect", str(bundle("narrow")[1]), "--check"]) == 2
    assert "for cpu" in capsys.readouterr().err


@pytest.mark.parametrize("contents", [b"garbage" * 100, bytes([8, 10, 0x3A, 4, 1, 2, 3, 4]), b""])
def test_what_is_no_graph_is_told(
    static_bundle: Bundles, tmp_path: Path, capsys: pytest.CaptureFixture[str], contents: bytes
) -> None:
    """The second has the outermost fields of a model, and nothing of one within."""
    folder = tmp_path / "bundle"
    shutil.copytree(static_bundle("narrow", "tensorrt", "bf16")[1], folder)
    (folder / MODEL_FILES["step"]).write_bytes(contents)
    assert main(["inspect", str(folder), "--check"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "step: " in error
    assert "export the bundle again" in error
