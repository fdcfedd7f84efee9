"""int8 bundles: weights that are the checkpoint's, errors within bounds, outliers endured, and what is recorded."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file

from qwen_image_engine.calibration.quantise.network import quantised_networks
from qwen_image_engine.engines.backends import load_engine
from qwen_image_engine.engines.core.engine import Array
from qwen_image_engine.export.bundle.bundle import export_bundle
from qwen_image_engine.export.estimate.sizes import estimate_export
from qwen_image_engine.export.targets import choose_target
from qwen_image_engine.export.verify.difference import Difference, difference
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.pipeline import engine_loader
from qwen_image_engine.reference.storage.tensor_file import read_header
from qwen_image_engine.runtime.bundle.manifest import read_manifest
from qwen_image_engine.runtime.bundle.manifest_entries import QuantisedLayer

Bundles = Callable[..., tuple[Path, Path]]
Inputs = Callable[..., dict[str, Array]]

SIZES = {"batch": 2, "text": 19, "prefix": 7, "tokens": 24, "image": 12}
QUANTISED = ("text_encoder", "prefix", "prefix_image", "step")


def ran(folder: Path, component: str, inputs: Inputs, backend: str) -> dict[str, Any]:
    """The outputs of a bundle's component."""
    entry = read_manifest(folder).components[component]
    return load_engine(backend, folder / entry.model, entry.contract).run(inputs(entry.contract, **SIZES))


def differences(checkpoint: Path, folder: Path, component: str, inputs: Inputs, found: Any) -> dict[str, Difference]:
    """Each output of a bundle's component against torch's in fp32."""
    arrays = inputs(read_manifest(folder).components[component].contract, **SIZES)
    expected = engine_loader(Checkpoint.open(checkpoint))(component).run(arrays)
    return {name: difference(found[name], expected[name]) for name in expected}


@pytest.fixture(scope="module")
def run_once() -> Callable[..., dict[str, Any]]:
    """`ran`, of which each is computed once: OpenVINO compiles a graph for half a second."""
    made: dict[tuple[Path, str, str], dict[str, Any]] = {}

    def once(folder: Path, component: str, inputs: Inputs, backend: str) -> dict[str, Any]:
        key = folder, component, backend
        if key not in made:
            made[key] = ran(folder, component, inputs, backend)
        return made[key]

    return once


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("component", QUANTISED)
@pytest.mark.parametrize("name", ["narrow", "odd"])
def test_engines_are_near_torch(
    int8_bundle: Bundles,
    random_inputs: Inputs,
    run_once: Callable[..., dict[str, Any]],
    name: str,
    component: str,
    backend: str,
) -> None:
    checkpoint, folder = int8_bundle(name)
    outputs = run_once(folder, component, random_inputs, backend)
    found = differences(checkpoint, folder, component, random_inputs, outputs)
    # Rotations of 8 to 32 channels leave 1% a product in 2 to 4 blocks; a wrong scale or rotation costs 30% and more.
    assert max(item.relative_l2 for item in found.values()) < 0.03


@pytest.mark.parametrize("component", QUANTISED)
def test_engines_agree(
    int8_bundle: Bundles, random_inputs: Inputs, run_once: Callable[..., dict[str, Any]], component: str
) -> None:
    folder = int8_bundle("odd")[1]
    one, other = (run_once(folder, component, random_inputs, backend) for backend in ("onnxruntime", "openvino"))
    # Codes differ by one where rounding in fp32 decides, and what follows differs with them.
    assert max(difference(one[name], other[name]).relative_l2 for name in one) < 0.01


@pytest.mark.parametrize("component", QUANTISED)
def test_planted_outliers_move_nothing(int8_bundle: Bundles, random_inputs: Inputs, component: str) -> None:
    checkpoint, folder = int8_bundle("narrow", outliers=True)
    outputs = ran(folder, component, random_inputs, "onnxruntime")
    found = differences(checkpoint, folder, component, random_inputs, outputs)
    # The same network through plain W8A8 is below 0.9 (tests/calibration/quantise/test_equalisation.py).
    assert min(item.cosine for item in found.values()) >= 0.9995


def test_weights_are_the_checkpoints(int8_bundle: Bundles) -> None:
    checkpoint, folder = int8_bundle("odd")
    stored = load_file(checkpoint / "transformer" / "diffusion_pytorch_model.safetensors")
    written = load_file(folder / "transformer" / "weights.safetensors")
    layers = read_manifest(folder).components["step"].quantised_layers
    assert len(layers) == 7 * Checkpoint.open(checkpoint).transformer.num_layers
    for name, layer in layers.items():
        codes, scales = written[f"{name}.weight"], written[f"{name}.weight_scale"]
        assert codes.dtype == np.int8
        assert codes.shape == stored[f"{name}.weight"].shape
        weight = codes * scales[:, None].astype(np.float64)
        size = layer.rotation
        signs = np.array([[(-1) ** (i & j).bit_count() for j in range(size)] for i in range(size)])
        unrotated = (weight.reshape(-1, size) @ (signs / np.sqrt(size))).reshape(weight.shape)
        # Random weights are even: nothing to equalise. Rounding to 255 levels: 0.4% to 0.7%.
        assert difference(unrotated, stored[f"{name}.weight"]).relative_l2 < 0.01
    quantised = {f"{name}.weight" for name in layers}
    for name in stored.keys() - quantised:
        np.testing.assert_array_equal(written[name], stored[name])


def test_prefix_and_step_read_the_same_bytes(int8_bundle: Bundles) -> None:
    folder = int8_bundle("narrow")[1]
    places = []
    for component in ("prefix", "step"):
        model = onnx.load(str(folder / "transformer" / f"{component}.onnx"), load_external_data=False)
        places.append(
            {
                item.name: tuple((entry.key, entry.value) for entry in item.external_data)
                for item in model.graph.initializer
                if item.data_location == onnx.TensorProto.EXTERNAL
            }
        )
    shared = places[0].keys() & places[1].keys()
    assert "transformer_blocks.0.attn.to_q.weight" in shared
    assert "transformer_blocks.1.attn.to_v.weight_scale" in shared
    assert all(places[0][name] == places[1][name] for name in shared)


def test_graphs_quantise_each_input_once(int8_bundle: Bundles) -> None:
    checkpoint, folder = int8_bundle("narrow")
    layers = Checkpoint.open(checkpoint).transformer.num_layers
    nodes = onnx.load(str(folder / "transformer" / "step.onnx"), load_external_data=False).graph.node
    counts = Counter(node.op_type for node in nodes)
    # q, k and v share one, gate and proj share one; to_out and out have their own.
    assert counts["QuantizeLinear"] == 4 * layers
    assert counts["Gemm"] == 7 * layers + 6


def test_manifest_says_how_each_linear_is_quantised(int8_bundle: Bundles) -> None:
    components = read_manifest(int8_bundle("narrow")[1]).components
    step = components["step"]
    assert step.precision == "int8"
    # 96 = 32 * 3, 288 = 32 * 9.
    assert step.quantised_layers["transformer_blocks.0.attn.to_q"] == QuantisedLayer("int8", 32)
    assert step.quantised_layers["transformer_blocks.1.img_mlp.out"] == QuantisedLayer(
        "int8", 32, "transformer_blocks.1.img_mlp.proj"
    )
    assert "proj_out" in step.excluded_layers
    assert components["text_encoder"].excluded_layers == ()
    assert components["vae_decoder_up"].precision == "fp32"
    assert components["vae_decoder_up"].quantised_layers == {}
    # What the prefix's last block computes beyond keys and values, nobody reads.
    assert "transformer_blocks.1.attn.to_out.0" not in components["prefix"].quantised_layers


def test_what_is_excluded_stays_in_fp32(
    with_outliers: Callable[[str], tuple[Path, Path]], random_inputs: Inputs, tmp_path: Path
) -> None:
    planted = with_outliers("odd")[1]
    kept = ("*.attn.to_v", "model.language_model.layers.*.v_proj")
    export_bundle(planted, tmp_path / "bundle", precision="int8", exclude=kept, skip_blocks=[1])
    step = read_manifest(tmp_path / "bundle").components["step"]
    blocks = {name.split(".")[1] for name in step.quantised_layers}
    assert blocks == {"0", "2"}
    assert {"transformer_blocks.0.attn.to_v", "transformer_blocks.1.attn.to_q"} <= set(step.excluded_layers)
    written = load_file(tmp_path / "bundle" / "transformer" / "weights.safetensors")
    assert written["transformer_blocks.0.attn.to_v.weight"].dtype == np.float32
    for component in QUANTISED:
        outputs = ran(tmp_path / "bundle", component, random_inputs, "onnxruntime")
        found = differences(planted, tmp_path / "bundle", component, random_inputs, outputs)
        assert min(item.cosine for item in found.values()) >= 0.9995


def test_plan_knows_the_bytes_before_they_are_written(int8_bundle: Bundles) -> None:
    checkpoint, folder = int8_bundle("odd")
    chosen = choose_target("cpu", "int8")
    opened = Checkpoint.open(checkpoint)
    plan = estimate_export(opened, chosen, quantised_networks(opened, chosen.quantisation), "copy")
    for item in plan.networks:
        tensors = read_header(folder / item.network / "weights.safetensors").values()
        written = sum(tensor.nbytes for tensor in tensors)
        assert item.engine_bytes == written
        # The text encoder's folder has the embedding table besides.
        assert item.bundle_bytes - written == (427 * 48 * 4 if item.network == "text_encoder" else 0)


def test_an_export_with_other_exclusions_is_another_bundle(int8_bundle: Bundles, tmp_path: Path) -> None:
    checkpoint, made = int8_bundle("narrow")
    output = shutil.copytree(made, tmp_path / "bundle")
    assert export_bundle(checkpoint, output, precision="int8") == read_manifest(made)
    again = export_bundle(checkpoint, output, precision="int8", exclude=["*.attn.to_q"])
    assert "transformer_blocks.0.attn.to_q" in again.components["step"].excluded_layers
