"""Graphs for ONNX Runtime on CUDA: their form, the kernels that they need, and what they compute in float32."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file

from qwen_image_engine.calibration.quantise.network import quantised_networks
from qwen_image_engine.engines.backends import load_engine
from qwen_image_engine.engines.core.components import COMPONENTS, components_with
from qwen_image_engine.engines.core.engine import Array
from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.engines.cuda.driver import DeviceInfo
from qwen_image_engine.engines.onnxruntime.cuda import Device
from qwen_image_engine.export import targets
from qwen_image_engine.export.bundle.bundle import export_bundle
from qwen_image_engine.export.bundle.network_folder import MODEL_FILES
from qwen_image_engine.export.checks.rule import Expected
from qwen_image_engine.export.checks.tensorrt_rules import RULES, broken_rules
from qwen_image_engine.export.estimate.sizes import estimate_export
from qwen_image_engine.export.passes.quantised.linear_to_static import through_codes
from qwen_image_engine.export.verify.layer_outputs import layer_graph
from qwen_image_engine.export.verify.parity import verify_bundle
from qwen_image_engine.export.verify.recording import Case
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.pipeline import engine_loader
from qwen_image_engine.runtime.bundle.bundle import Bundle
from qwen_image_engine.runtime.bundle.manifest import read_manifest
from tests.support.images import patches
from tests.support.numpy_memory import NumpyMemory

Export = Callable[[str], tuple[Path, Path]]
CAUSAL = tuple(row.name for row in components_with("causal"))
HALF = {"bf16": ir.DataType.BFLOAT16, "fp16": ir.DataType.FLOAT16}

# With a kernel for bfloat16 and float16 on CUDA, by docs/OperatorKernels.md of ONNX Runtime; Pad, DepthToSpace,
# ReduceMean and Resize have none for bfloat16.
KERNELS = frozenset(
    {"Add", "Attention", "Cast", "Concat", "Conv", "Div", "Expand", "Gather", "Gelu", "Gemm", "LayerNormalization"}
    | {"MatMul", "Mul", "RMSNormalization", "Reshape", "RotaryEmbedding", "Shape", "Sigmoid", "Slice", "Split"}
    | {"Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze"}
)


@pytest.fixture(scope="module")
def cuda_bundle(random_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Export:
    """`cuda_bundle(precision) -> (checkpoint, bundle)`; "fp32" is bf16's recipe, traced in float32."""
    made: dict[str, Path] = {}

    def bundle(precision: str) -> tuple[Path, Path]:
        checkpoint = random_checkpoint("narrow")
        if precision not in made:
            made[precision] = tmp_path_factory.mktemp(precision) / "bundle"
            plain = targets.TARGETS["cuda", "bf16" if precision == "fp32" else precision]
            chosen = replace(plain, dtype="float32") if precision == "fp32" else plain
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(targets, "TARGETS", {("cuda", plain.precision): chosen})
                export_bundle(checkpoint, made[precision], target="cuda", precision=plain.precision)
        return checkpoint, made[precision]

    return bundle


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_graphs_are_sound_and_keep_the_rules(cuda_bundle: Export, precision: str) -> None:
    """Graphs of TensorRT but for layer norms: ONNX Runtime heeds `stash_type`, and a Cast would cost it a pass."""
    folder = cuda_bundle(precision)[1]
    manifest = read_manifest(folder)
    for name, entry in manifest.components.items():
        onnx.checker.check_model(str(folder / entry.model), full_check=True)
        rules = set(RULES) - {"layer-norm"}
        assert broken_rules(ir.load(folder / entry.model), Expected.of(manifest, name), rules) == [], name
        assert entry.precision == ("fp32" if COMPONENTS[name].network == "vae" else precision)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("component", CAUSAL)
def test_what_is_rounded_has_a_kernel_on_cuda(cuda_bundle: Export, component: str, precision: str) -> None:
    model = ir.load(cuda_bundle(precision)[1] / MODEL_FILES[component])
    half = HALF[precision]
    rounded = {
        node.op_type
        for node in model.graph
        for value in (*node.inputs, *node.outputs)
        if value is not None and value.dtype == half
    }
    assert rounded <= KERNELS
    assert bool(rounded) == (COMPONENTS[component].network != "vae")
    attention = [node for node in model.graph if node.op_type == "Attention"]
    assert all(node.inputs[0] is not None and node.inputs[0].dtype == half for node in attention) or "vae" in component
    for spec, value in zip(
        read_manifest(cuda_bundle(precision)[1]).components[component].contract.outputs,
        model.graph.outputs,
        strict=True,
    ):
        cache = spec.name.startswith(("key_", "value_", "own_"))
        assert value.dtype == (half if cache else ir.DataType.FLOAT)
        assert spec.dtype == ({"bf16": "bfloat16", "fp16": "float16"}[precision] if cache else "float32")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_attention_has_the_form_that_flash_attention_takes(cuda_bundle: Export, precision: str) -> None:
    """16 bits, no mask, no cache, heads of at most 256 channels in steps of 8; that it is taken a GPU has to show."""
    folder = cuda_bundle(precision)[1]
    for component in ("prefix", "prefix_image", "step"):
        nodes = [node for node in ir.load(folder / MODEL_FILES[component]).graph if node.op_type == "Attention"]
        masked = [node for node in nodes if any(value is not None for value in node.inputs[3:])]
        # The text behind a reference image alone sees all before it and not all of itself.
        assert len(masked) == (len(nodes) // 2 if component == "prefix_image" else 0)
        for node in nodes:
            assert len(node.outputs) == 1
            query_heads, heads = (node.attributes[f"{side}_num_heads"].as_int() for side in ("q", "kv"))
            assert query_heads % heads == 0
            shapes = [value.shape for value in node.inputs[:3] if value is not None and value.shape is not None]
            widths = {shape[-1] // count for shape, count in zip(shapes, (query_heads, heads, heads), strict=True)}
            assert len(widths) == 1
            assert all(width <= 256 and width % 8 == 0 for width in widths)
            assert {value.dtype for value in node.inputs[:3] if value is not None} == {HALF[precision]}


@pytest.mark.parametrize("component", CAUSAL)
def test_in_float32_they_compute_what_torch_does(
    cuda_bundle: Export,
    random_inputs: Callable[..., dict[str, Array]],
    component: str,
    within: Callable[[str, float, float], None],
) -> None:
    checkpoint, folder = cuda_bundle("fp32")
    entry = read_manifest(folder).components[component]
    running = load_engine("onnxruntime", folder / entry.model, entry.contract)
    reference = engine_loader(Checkpoint.open(checkpoint))(component)
    sizes = {"batch": 2, "text": 19, "prefix": 7, "tokens": 24, "height": 6, "width": 4, "image": 24, "slots": 6}
    inputs = random_inputs(entry.contract, **sizes)
    expected, found = reference.run(inputs), running.run(inputs)
    worst = max(
        float(np.linalg.norm(found[name] - expected[name]) / np.linalg.norm(expected[name])) for name in expected
    )
    within(f"{component} of CUDA's graphs in float32 against torch, relative L2", worst, 1e-5)


def test_keys_and_values_are_planned_in_two_bytes(random_checkpoint: Callable[..., Path]) -> None:
    checkpoint = Checkpoint.open(random_checkpoint("narrow"))
    plans = {}
    for target, precision in (("cuda", "fp16"), ("cuda", "bf16"), ("cpu", "fp32")):
        chosen = targets.choose_target(target, precision)
        plans[precision] = estimate_export(checkpoint, chosen, quantised_networks(checkpoint, None), "copy")
    assert plans["fp16"].bundle_bytes == plans["bf16"].bundle_bytes < plans["fp32"].bundle_bytes
    vae = {name: plan.networks[-1] for name, plan in plans.items()}
    assert {item.network for item in vae.values()} == {"vae"}
    assert vae["fp16"].bundle_bytes == vae["fp32"].bundle_bytes


def test_a_bundle_says_which_engine_runs_it(
    cuda_bundle: Export, exported: Callable[..., Path], fails: Callable[..., str], tmp_path: Path
) -> None:
    with pytest.raises(QwenImageError, match=r"holds graphs for cuda.* --engine onnxruntime-cuda, or .* --target cpu"):
        Bundle.open(cuda_bundle("bf16")[1]).load_engine("step", "onnxruntime")
    run = ("run", cuda_bundle("bf16")[1], "--engine", "onnxruntime", "-p", "a", "-o", tmp_path / "out.png")
    assert "--engine onnxruntime-cuda" in fails(2, *run)
    with pytest.raises(QwenImageError, match=r"holds graphs for cpu.* another --engine, or .* --target cuda"):
        Bundle.open(exported()).load_engine("step", "onnxruntime-cuda")


def test_verify_of_an_engine_on_a_device(
    cuda_bundle: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]
) -> None:
    """Keys and values stay in memory of their own, layers and trajectories included; the CPU's provider runs it."""
    folder = Path(shutil.copytree(cuda_bundle("fp32")[1], tmp_path / "bundle"))
    package = "qwen_image_engine"
    here = Device("cpu", "CPUExecutionProvider", {}, NumpyMemory(0))
    monkeypatch.setattr(f"{package}.engines.onnxruntime.cuda.cuda_device", lambda: here)
    monkeypatch.setattr(f"{package}.export.verify.parity.version", lambda name: f"of {name}")
    for module in ("export.verify.parity", "runtime.bundle.bundle"):
        monkeypatch.setattr(f"{package}.{module}.require", lambda name: None)
    gpu = DeviceInfo("A GPU", "9.0", 13000, total_bytes=1 << 34, free_bytes=1 << 34)
    for module in ("runtime.bundle.bundle", "runtime.conditioning"):
        monkeypatch.setattr(f"{package}.{module}.device_info", lambda: gpu)
    case = Case("edit", "make it blue", 64, 32, references=(patches(60, 50),))
    result = verify_bundle(folder, cases=[case], engine="onnxruntime-cuda", layers=True)
    assert result.passed
    assert {row.component for row in result.rows} == {*CAUSAL, "teacher_forced"}
    assert all(row.worst.relative_l2 < 1e-4 for row in result.rows)
    assert len(result.free_running[0].engine) == 8
    assert result.layers is not None
    assert all(layer.worst.relative_l2 < 1e-4 for layer in result.layers.layers)
    assert "--layers with --engine tensorrt: a built engine gives its outputs alone" in fails(
        2, "verify", folder, "--layers", "--engine", "tensorrt"
    )


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_layers_come_in_float32(cuda_bundle: Export, precision: str) -> None:
    folder = cuda_bundle(precision)[1]
    entry = read_manifest(folder).components["step"]
    with layer_graph(folder, entry, "") as graph:
        onnx.checker.check_model(str(graph.model), full_check=True)
        assert {spec.dtype for spec in graph.contract.outputs} == {"float32"}
        assert set(graph.outputs.values()) <= {
            item.name for item in onnx.load(graph.model, load_external_data=False).graph.output
        }


class TestFp8:
    """`GemmFloat8`, whose kernel is on CUDA alone: form, codes and scales, and the operator's own schema."""

    def test_products_hold_the_codes_that_were_quantised_for_tensorrt(
        self, static_bundle: Callable[..., tuple[Path, Path]]
    ) -> None:
        folder, twin = (static_bundle("narrow", target, "fp8")[1] for target in ("cuda", "tensorrt"))
        manifest = read_manifest(folder)
        for name, entry in manifest.components.items():
            model = ir.load(folder / entry.model)
            products = [node for node in model.graph if node.op_type == "GemmFloat8"]
            assert len(products) == len(entry.quantised_layers)
            assert entry.least_compute_capability == (8.9 if products else None)
            assert not [node for node in model.graph if node.op_type == "DequantizeLinear"]
            for node in products:
                assert node.domain == "com.microsoft"
                assert node.attributes["transB"].as_int() == 1
                assert node.attributes["dtype"].as_int() == ir.DataType.FLOAT16
                rows, weight, bias, row_scale, weight_scale = node.inputs
                assert bias is None
                assert rows is not None
                assert weight is not None
                assert row_scale is not None
                assert weight_scale is not None
                assert rows.dtype == weight.dtype == ir.DataType.FLOAT8E4M3FN
                quantise = rows.producer()
                assert quantise is not None
                assert quantise.op_type == "QuantizeLinear"
                assert quantise.inputs[0] is not None
                assert quantise.inputs[0].dtype == ir.DataType.FLOAT16  # for bfloat16 CUDA has no such kernel
                assert row_scale.dtype == weight_scale.dtype == ir.DataType.FLOAT
                linear = (weight.name or "").removesuffix(".weight")
                assert row_scale.const_value is not None
                assert row_scale.const_value.numpy() == pytest.approx(
                    read_manifest(twin).components[name].quantised_layers[linear].input_scale, rel=2**-8
                )
        assert manifest.components["step"].quantised_layers
        assert {node.op_type for node in ir.load(folder / MODEL_FILES["vae_encoder"]).graph} & {"Conv"}
        stored = load_file(folder / "transformer" / "weights.safetensors")
        scales = [tensor for name, tensor in stored.items() if name.endswith(".weight_scale")]
        assert {scale.dtype for scale in scales} == {torch.float32}
        assert all(float(scale) > 0 for scale in scales)
        codes = [load_file(path / "transformer" / "weights.safetensors") for path in (folder, twin)]
        for linear in manifest.components["step"].quantised_layers:
            first, second = (found[f"{linear}.weight"].view(torch.uint8) for found in codes)
            assert first.equal(second)

    @pytest.mark.parametrize(("scale", "expected"), [(1e-9, 2.0**-14), (2.0**-14, 2.0**-14), (0.5, 0.5)])
    def test_an_inputs_scale_is_a_normal_number(self, scale: float, expected: float) -> None:
        half = ir.TensorType(ir.DataType.FLOAT16)
        rows = ir.Value(name="rows", shape=ir.Shape([4, 8]), type=half)
        reader = ir.node("Identity", [rows])
        graph = ir.Graph([rows], reader.outputs, nodes=[reader], opset_imports={"": 23}, name="step")
        through_codes(graph, reader, rows, scale, "fp8", "input_scale")
        tensor = graph.initializers["input_scale"].const_value
        assert tensor is not None
        assert tensor.numpy().dtype == np.float16
        assert float(tensor.numpy()) == expected

    def test_the_schema_takes_it(self, static_bundle: Callable[..., tuple[Path, Path]]) -> None:
        """ONNX Runtime on a CPU knows the operator, checks its types, and has no kernel."""
        folder = static_bundle("narrow", "cuda", "fp8")[1]
        entry = read_manifest(folder).components["step"]
        with pytest.raises(QwenImageError, match=r"(?i)(find|not).*implement.*GemmFloat8|GemmFloat8.*not implement"):
            load_engine("onnxruntime", folder / entry.model, entry.contract)

    def test_an_old_gpu_is_told(
        self, static_bundle: Callable[..., tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gpu = DeviceInfo("NVIDIA A100", "8.0", 13000, total_bytes=1 << 34, free_bytes=1 << 34)
        monkeypatch.setattr("qwen_image_engine.runtime.bundle.bundle.require", lambda name: None)
        monkeypatch.setattr("qwen_image_engine.runtime.bundle.bundle.device_info", lambda: gpu)
        bundle = Bundle.open(static_bundle("narrow", "cuda", "fp8")[1])
        with pytest.raises(QwenImageError, match=r"step: its graph is in fp8.* 8\.9 or newer; NVIDIA A100 has 8\.0"):
            bundle.load_engine("step", "onnxruntime-cuda")

    def test_fp8_attention_is_refused(self) -> None:
        with pytest.raises(UsageError, match="FP8 attention with --target cuda"):
            targets.choose_target("cuda", "fp8", fp8_attention=True)
