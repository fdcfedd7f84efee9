"""The audit: a linear that ONNX Runtime would not multiply as integers stops the export."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from onnx_ir.passes import InPlacePass, PassResult

from qwen_image_engine.calibration.quantise.network import QuantisedNetwork
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.export import targets
from qwen_image_engine.export.bundle.bundle import export_bundle
from qwen_image_engine.export.checks.onnxruntime_audit import audit
from qwen_image_engine.runtime.bundle.manifest import read_manifest

SPOILED = "transformer_blocks.1.img_mlp.out.weight"


class DropZeroPoint(InPlacePass):
    """Without a zero point ONNX Runtime 1.32 leaves a weight's DequantizeLinear as it is."""

    def __init__(self, quantised: QuantisedNetwork) -> None:
        super().__init__()

    def call(self, model: ir.Model) -> PassResult:
        for node in model.graph:
            value = node.inputs[0] if node.op_type == "DequantizeLinear" else None
            if value is not None and value.name == SPOILED:
                node.resize_inputs(2)
        return PassResult(model, True)


def test_every_linear_of_a_bundle_is_found(int8_bundle: Callable[..., tuple[Path, Path]]) -> None:
    folder = int8_bundle("narrow")[1]
    before = sorted(folder.rglob("*"))
    for component in ("text_encoder", "prefix", "prefix_image", "step"):
        entry = read_manifest(folder).components[component]
        audit(folder / entry.model, [f"{name}.weight" for name in entry.quantised_layers])
        # Not those that were never quantised.
        model = onnx.load(str(folder / entry.model), load_external_data=False)
        norms = [item.name for item in model.graph.initializer if "norm" in item.name][:1]
        with pytest.raises(QwenImageError, match=norms[0]):
            audit(folder / entry.model, norms)
    assert sorted(folder.rglob("*")) == before


def test_a_linear_that_is_not_fused_stops_the_export(
    random_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = targets.TARGETS["cpu", "int8"]
    spoiled = replace(plain, quantising=lambda: (*plain.quantising(), DropZeroPoint))
    monkeypatch.setattr(targets, "TARGETS", {("cpu", "int8"): spoiled})
    with pytest.raises(QwenImageError, match=rf"step.onnx: 1 of 14 quantised linears .*{SPOILED}.*--exclude"):
        export_bundle(random_checkpoint("narrow"), tmp_path / "bundle", precision="int8")
    assert list(tmp_path.iterdir()) == []


def test_an_audit_needs_onnxruntime(
    random_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(QwenImageError, match=r"pip install 'qwen-image-engine\[cpu\]'"):
        export_bundle(random_checkpoint("narrow"), tmp_path / "bundle", precision="int8")
    assert list(tmp_path.iterdir()) == []
