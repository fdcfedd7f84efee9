"""A bundle for TensorRT with graphs that are no graphs."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from qwen_image_engine.engines.core.contract import contract
from qwen_image_engine.runtime.bundle.files import describe_file
from qwen_image_engine.runtime.bundle.manifest import write_manifest
from qwen_image_engine.runtime.bundle.manifest_entries import ComponentEntry, EmbeddingsEntry, Fp8Scales, QuantisedLayer
from tests.support.builders import install_builders
from tests.support.numpy_engines import DIMS
from tests.support.played_build import COMPONENTS, NO_TENSORS
from tests.support.toy_graph import toy_graph
from tests.support.toy_manifest import toy_manifest


@pytest.fixture
def bundle(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """For TensorRT, with graphs that are no graphs."""
    install_builders(monkeypatch, tensorrt="11.4.0.106")
    folder = tmp_path / "bundle"
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("*.bin"))
    components = {}
    for name in COMPONENTS:
        (folder / f"{name}.onnx").write_bytes(toy_graph(name))
        components[name] = ComponentEntry(
            f"{name}.onnx", ("weights.safetensors",), "bf16", (), {}, 23, 11, contract(name, DIMS, "bfloat16")
        )
        components[name] = replace(components[name], fused_attentions=("Attention_4",))
    (folder / "weights.safetensors").write_bytes(NO_TENSORS)
    layers = {f"blocks.{index}.to_q": QuantisedLayer("fp8") for index in range(3)}
    components["step"] = replace(
        components["step"],
        precision="fp8",
        quantised_layers=layers,
        fp8_attention={"blocks.0": Fp8Scales(1.0, 1.0, 1.0, 1 / 448)},
    )
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    write_manifest(
        folder,
        toy_manifest(
            precision="fp8",
            embeddings=EmbeddingsEntry("weights.safetensors", 8, "bfloat16", (3, 8)),
            components=components,
            files={name: describe_file(folder / name) for name in files},
        ),
    )
    return folder
