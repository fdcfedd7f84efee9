"""Keys and values of a prefix in FP8: the form of the graphs, codes against ml_dtypes, and pictures drawn with them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np
import onnx
import pytest

from qwen_image_engine.calibration.quantise import network
from qwen_image_engine.engines.backends import load_engine
from qwen_image_engine.export.bundle.bundle import export_bundle
from qwen_image_engine.export.bundle.network_folder import MODEL_FILES
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.runtime.bundle.bundle import Bundle
from qwen_image_engine.runtime.bundle.manifest import read_manifest
from qwen_image_engine.runtime.component_pool import Memory
from qwen_image_engine.runtime.pipeline import QwenImage
from tests.support.images import patches

Bundles = Callable[..., tuple[Path, Path]]
FP8 = onnx.TensorProto.FLOAT8E4M3FN


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-twin"])
@pytest.mark.parametrize("component", ["prefix", "prefix_image", "step"])
def test_keys_and_values_go_in_and_out_as_codes(static_bundle: Bundles, target: str, component: str) -> None:
    checkpoint, folder = static_bundle("narrow", target, "fp8", fp8_attention=True)
    manifest = read_manifest(folder)
    onnx.checker.check_model(str(folder / MODEL_FILES[component]), full_check=True)
    found = onnx.load(str(folder / MODEL_FILES[component]), load_external_data=False).graph
    inside = (item for item in found.initializer if item.data_location != onnx.TensorProto.EXTERNAL)
    stored = {item.name: onnx.numpy_helper.to_array(item) for item in inside}
    contract = manifest.components[component].contract
    ports = [spec for spec in (*contract.inputs, *contract.outputs) if spec.is_cache]
    types = {value.name: value.type.tensor_type.elem_type for value in (*found.input, *found.output)}
    sides = {"step": 1, "prefix": 1, "prefix_image": 2}[component]
    assert len(ports) == sides * 2 * Checkpoint.open(checkpoint).transformer.num_layers
    for spec in ports:
        assert (spec.dtype, types[spec.name]) == ("float8_e4m3fn", FP8)
        at = [node for node in found.node if spec.name in (*node.input, *node.output)]
        assert [node.op_type for node in at] == ["QuantizeLinear" if spec in contract.outputs else "DequantizeLinear"]
        what, _, index = spec.layer_tensor.partition("_")
        scales = manifest.components["step"].fp8_attention[f"transformer_blocks.{index}"]
        assert float(stored[at[0].input[1]]) == getattr(scales, what)


def test_the_codes_are_those_of_what_the_prefix_gives_in_floats(static_bundle: Bundles) -> None:
    plain = static_bundle("narrow", "tensorrt-twin", "fp8")[1]
    coded = static_bundle("narrow", "tensorrt-twin", "fp8", fp8_attention=True)[1]
    entry = read_manifest(coded).components["prefix"]
    scales = read_manifest(coded).components["step"].fp8_attention
    rng = np.random.default_rng(0)
    width = entry.contract.inputs[0].shape[-1]
    half = entry.contract.inputs[1].shape[-1]
    assert isinstance(width, int)
    assert isinstance(half, int)
    angle = rng.random((9, half), np.float32)
    inputs = {"text_states": rng.standard_normal((1, 9, width), np.float32), "cos": np.cos(angle), "sin": np.sin(angle)}
    floats = load_engine("onnxruntime", plain / entry.model, read_manifest(plain).components["prefix"].contract).run(
        inputs
    )
    codes = load_engine("onnxruntime", coded / entry.model, entry.contract).run(inputs)
    for name, values in floats.items():
        what, _, index = name.partition("_")
        scaled = values / np.float32(getattr(scales[f"transformer_blocks.{index}"], what))
        assert codes[name].dtype == np.uint8
        np.testing.assert_array_equal(codes[name], scaled.astype(ml_dtypes.float8_e4m3fn).view(np.uint8))


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_pictures_are_drawn_with_them(static_bundle: Bundles, engine: str) -> None:
    """One byte a number: from the prefix to the room for a reference image, and to the copies of a batch."""
    folder = static_bundle("narrow", "tensorrt-twin", "fp8", fp8_attention=True)[1]
    dims = read_manifest(folder).dims
    memory: Memory = "sequential" if engine == "onnxruntime" else "resident"  # OpenVINO compiles at every load
    with QwenImage.load(folder, engine=engine, memory=memory, threads=1) as pipeline:
        options: dict[str, Any] = {"width": 96, "height": 64, "steps": 2, "num_images": 2, "reference_resolution": 288}
        request = pipeline.prepare("a red circle", references=[patches(200, 101)], **options)
        conditioning = pipeline.encode("a red circle", request.references)
        assert {values.dtype for values in conditioning.cache.values()} == {np.dtype(np.uint8)}
        assert request.cache_bytes == 3 * conditioning.length * 2 * dims.layers * dims.heads * dims.head_dim
        pictures = pipeline.generate(request)
    assert len(pictures) == 2
    assert all(np.isfinite(picture.latents).all() for picture in pictures)


def test_a_step_gives_the_same_with_a_cache_of_floats(
    static_bundle: Bundles, calibrated: Callable[[Path], Path], tmp_path: Path
) -> None:
    """Its attention rounds to the same codes. Bundles of earlier versions have such a cache, and run as they did."""
    checkpoint, coded = static_bundle("narrow", "tensorrt-twin", "fp8", fp8_attention=True)
    with mock.patch.object(network, "_cache", return_value=()):
        export_bundle(
            checkpoint,
            tmp_path / "floats",
            target="tensorrt-twin",
            precision="fp8",
            calibration=calibrated(checkpoint),
            fp8_attention=True,
        )
    velocities = []
    for folder, dtype in ((coded, np.uint8), (tmp_path / "floats", np.float32)):
        with QwenImage.load(Bundle.open(folder), memory="sequential", threads=1) as pipeline:
            conditioning = pipeline.encode("a red circle")
            assert {values.dtype for values in conditioning.cache.values()} == {np.dtype(dtype)}
            velocity = pipeline.denoiser(conditioning, width=96, height=64)
            latents = np.random.default_rng(0).standard_normal((1, 24, pipeline.facts.channels), np.float32)
            velocities.append(velocity(latents, 0.5))
    first, second = velocities
    np.testing.assert_array_equal(first, second)
