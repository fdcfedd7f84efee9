"""The builder on a module made from the stub of TensorRT's real API: what it asks of a TensorRT that has a GPU.

What a compiler answers is asked of a real one, in `test_compiler`.
"""

import errno
import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.plans.entry import Profile
from qwen_image_engine.engines.tensorrt.build.job import BuildJob, BuildOptions, ExpectedFusions
from tests.support.fake_tensorrt import FakeTensorRT, forget_modules

PLAN = (b"first part, ", b"second part")
PROFILES = tuple(
    Profile(
        f"{side}x{side}", {"latents": ((1, 4, 8), (1, side, 8), (1, side, 8)), "cos": ((4, 2), (side, 2), (side, 2))}
    )
    for side in (512, 1024)
)


@pytest.fixture
def trt(tensorrt_stub: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorRT]:
    """In tensorrt's place, with a network of two attentions and two products in it."""
    fake = FakeTensorRT(tensorrt_stub)
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    forget_modules()
    layers = [
        layer(fake, "DEQUANTIZE", "codes_v"),
        attention(fake, "attention_0", "codes_v"),
        attention(fake, "vae", "x"),
        layer(fake, "MATRIX_MULTIPLY", "(Unnamed Layer* 3)", metadata="[ONNX Layer: gemm_q]"),
        layer(fake, "MATRIX_MULTIPLY", "gemm_out"),
    ]
    inputs = [fake.fake("ITensor", name=name) for name in ("latents", "cos")]
    network = fake.fake("INetworkDefinition", num_layers=len(layers), num_inputs=len(inputs))

    def write(builder: Any, network: Any, config: Any, writer: Any) -> bool:
        config.progress_monitor.phase_start("Building", None, 2)
        assert config.progress_monitor.step_complete("Building", 0)
        config.progress_monitor.phase_finish("Building")
        return all(writer.write(part) == len(part) for part in PLAN)

    fake.returns |= {
        "Builder.create_network": lambda builder, flags=0: network,
        "Builder.build_serialized_network_to_stream": write,
        "INetworkDefinition.get_layer": lambda network, index: layers[index],
        "INetworkDefinition.get_input": lambda network, index: inputs[index],
        "IAttention.get_input": lambda attention, index: attention.__dict__["inputs"][index],
        "ILayer.get_output": lambda layer, index: (
            "the softmax scale" if isinstance(layer, fake.IConstantLayer) else fake.fake("ITensor", name=layer.name)
        ),
        "INetworkDefinition.add_constant": lambda network, shape, weights: fake.fake("IConstantLayer"),
        "INetworkDefinition.set_weights_name": lambda network, weights, name: bool(name),
        "ITimingCache.serialize": lambda cache: b"timings",
        "EngineInspector.get_engine_information": lambda inspector, format: inspected(),
    }
    yield fake
    forget_modules()


def builder() -> ModuleType:
    return importlib.import_module("qwen_image_engine.engines.tensorrt.build.builder")


def layer(fake: FakeTensorRT, kind: str, name: str, metadata: str = "") -> Any:
    return fake.fake("ILayer", type=getattr(fake.LayerType, kind), name=name, metadata=metadata)


def attention(fake: FakeTensorRT, name: str, values: str) -> Any:
    """As the parser makes it: queries and keys come from products that it adds, which stand in no graph."""
    made = fake.fake("IAttention", name=name, metadata=f"[ONNX Layer: {name}]", mask=None)
    names = ("(Unnamed Layer* 8)_output", "(Unnamed Layer* 9)_output", values)
    made.__dict__["inputs"] = [fake.fake("ITensor", name=item) for item in names]
    found = layer(fake, "ATTENTION_INPUT", name)
    found.__dict__["attention"] = made  # which ILayer has not: reached only after the layer's class is named
    return found


def inspected(fp8: str = "FP8") -> str:
    """The account of an engine with two profiles."""
    layers = [
        {"Name": f"{name}{tag}", "Metadata": f"[ONNX Layer: {node}]", "Inputs": [{"Name": "x", "Datatype": dtype}]}
        for tag in ("", " [profile 1]")
        for name, node, dtype in (("_gemm_mha_v2_0", "attention_0", "FP8"), ("a", "gemm_q", fp8))
    ]
    return json.dumps({"Layers": layers})


def job(folder: Path, **changes: Any) -> BuildJob:
    made = BuildJob(
        component="step",
        builder="tensorrt",
        compute_capabilities=(),
        model="step.onnx",
        plan=str(folder / "step.plan"),
        timing_cache=str(folder / "step.timing"),
        profiles=PROFILES,
        options=BuildOptions(),
        promise=ExpectedFusions(fp8_products=1, int8_products=0, fp8_attention=1, attentions=("attention_0",)),
        softmax_scale=1 / 448,
        layers=str(folder / "step.layers.json"),
    )
    return replace(made, **changes)


def quantised_graph(folder: Path) -> Path:
    """A product of two stored weights, one in codes, and what is no weight in a file: a scale there, a number here."""
    onnx = pytest.importorskip("onnx")
    weights = []
    for name, kind, axes in (("to_q.weight", 3, [4, 4]), ("to_q.weight_scale", 1, [4]), ("norm.weight", 1, [4])):
        weight = onnx.TensorProto(name=name, data_type=kind, dims=axes, data_location=1)
        weight.external_data.add(key="location", value="weights.safetensors")
        weights.append(weight)
    weights.append(onnx.numpy_helper.from_array(np.ones(300, np.float32), "a constant"))
    nodes = [
        onnx.helper.make_node("DequantizeLinear", ["to_q.weight", "to_q.weight_scale"], ["w"], axis=0),
        onnx.helper.make_node("Mul", ["latents", "norm.weight"], ["x"]),
        onnx.helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    ports = [onnx.helper.make_tensor_value_info(name, 1, ["tokens", 4]) for name in ("latents", "y")]
    graph = onnx.helper.make_graph(nodes, "step", ports[:1], ports[1:], weights)
    path = folder / "graph.onnx"
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    return path


def go_on(phase: str, done: int, steps: int) -> bool:
    return True


def test_a_build(trt: FakeTensorRT, tmp_path: Path) -> None:
    said: list[tuple[str, int, int]] = []
    result = builder().build(job(tmp_path), lambda *words: said.append(words) is None)
    plan = tmp_path / "step.plan"
    assert plan.read_bytes() == b"".join(PLAN)
    from qwen_image_engine.runtime.system.files import file_sha256

    assert (result.bytes, result.sha256) == (plan.stat().st_size, file_sha256(plan))
    assert (result.fused_attentions, result.fp8_products, result.int8_products) == (1, 1, 0)
    assert said == [("Building", 1, 2)]
    assert (tmp_path / "step.timing").read_bytes() == b"timings"
    assert {path.name for path in tmp_path.iterdir()} == {"step.plan", "step.timing", "step.layers.json"}
    account = json.loads((tmp_path / "step.layers.json").read_text())
    assert account["Layers"] == json.loads(inspected())["Layers"]
    assert account["Profiles"] == ["512x512", "1024x1024"]
    assert (account["Attentions"], account["Products"]) == (["attention_0", "vae"], ["gemm_q", "gemm_out"])
    assert account["FromCodes"] == []
    assert result.warnings == ()

    names = trt.names()
    assert names.index("OnnxParser.parse_from_file") < names.index("Builder.create_builder_config")
    assert names.index("Builder.build_serialized_network_to_stream") < names.index("Runtime.__init__")
    shapes = [arguments for name, arguments in trt.calls if name == "IOptimizationProfile.set_shape"]
    assert [arguments[0] for arguments in shapes] == ["latents", "cos"] * 2
    dims = [arguments[0] for name, arguments in trt.calls if name == "Dims.__init__"]
    assert [(1, 4, 8), (1, 512, 8), (1, 512, 8)] in [dims[at : at + 3] for at in range(len(dims))]
    assert names.count("IBuilderConfig.add_optimization_profile") == 2


def test_attention_stays_fused_and_gets_its_scale(trt: FakeTensorRT, tmp_path: Path) -> None:
    builder().build(job(tmp_path), go_on)
    wide, narrow = (trt.returns["INetworkDefinition.get_layer"](None, index).__dict__["attention"] for index in (2, 1))
    assert narrow.decomposable is False
    assert wide.decomposable is True  # a head of 384 channels has no fused kernel
    assert narrow.normalization_quantize_scale == "the softmax scale"
    assert narrow.normalization_quantize_to_type == "fp8"
    assert "normalization_quantize_to_type" not in wide.__dict__
    ((kind, _, count),) = [arguments for name, arguments in trt.calls if name == "Weights.__init__"]
    assert (kind, count) == ("bfloat16", 1)


def test_what_tensorrt_refuses_in_silence_is_told(
    trt: FakeTensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for refused, words in (
        ("normalization_quantize_to_type", "0 attentions read FP8 in the parsed graph, expected at least 1"),
        (
            "decomposable",
            "made 0 attention layers without a mask of the graph's 1 that must be fused; none of: attention_0",
        ),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(trt.IAttention, refused, property(lambda self: True, lambda self, value: None), raising=False)
            with pytest.raises(QwenImageError, match=words):
                builder().build(job(tmp_path), go_on)


def test_attention_that_the_parser_decomposed_is_told_before_the_build(trt: FakeTensorRT, tmp_path: Path) -> None:
    promise = ExpectedFusions(1, 0, 1, ("attention_0", "attention_1"))
    words = "made 1 attention layers without a mask of the graph's 2 that must be fused; none of: attention_1"
    with pytest.raises(QwenImageError, match=words):
        builder().build(job(tmp_path, promise=promise), go_on)
    assert "Builder.build_serialized_network_to_stream" not in trt.names()


def test_what_the_inspector_says_is_kept_where_the_audit_fails(trt: FakeTensorRT, tmp_path: Path) -> None:
    trt.returns["EngineInspector.get_engine_information"] = lambda inspector, format: inspected("BF16")
    with pytest.raises(QwenImageError, match=r"report this with the names of .*step\.layers\.json$"):
        builder().build(job(tmp_path), go_on)
    account = json.loads((tmp_path / "step.layers.json").read_text())
    assert account["Layers"] == json.loads(inspected("BF16"))["Layers"]


def test_a_plan_is_without_the_weights_of_the_files_alone(trt: FakeTensorRT, tmp_path: Path) -> None:
    builder().build(job(tmp_path), go_on)
    assert "INetworkDefinition.mark_weights_refittable" not in trt.names()
    known = {"to_q.weight", "norm.weight"}
    trt.returns["INetworkDefinition.mark_weights_refittable"] = lambda network, name: name in known
    model = quantised_graph(tmp_path)
    stripped = job(tmp_path, model=str(model), options=BuildOptions(strip_weights=True))
    assert builder().build(stripped, go_on).warnings == ()
    marked = [item for name, item in trt.calls if name == "INetworkDefinition.mark_weights_refittable"]
    assert marked == [("norm.weight",), ("to_q.weight",)]
    known.remove("norm.weight")
    (warning,) = builder().build(stripped, go_on).warnings
    assert warning == "step: 1 of 2 weights stay in the plan: norm.weight"
    known.clear()
    with pytest.raises(
        QwenImageError, match=r"step: TensorRT's parser knows none of 2 weights by its name, .*without -"
    ):
        builder().build(stripped, go_on)


def test_weights_are_inputs_of_the_graph_that_the_parser_gets(trt: FakeTensorRT, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = quantised_graph(tmp_path)
    builder().build(job(tmp_path, model=str(model), options=BuildOptions(weights="bound")), go_on)
    assert "OnnxParser.parse_from_file" not in trt.names()
    ((data, path),) = [arguments for name, arguments in trt.calls if name == "OnnxParser.parse"]
    assert path == str(model)  # where the vectors and scales are
    graph = onnx.load_from_string(data).graph
    assert [item.name for item in graph.input] == ["latents", "to_q.weight"]
    assert [item.name for item in graph.initializer] == ["to_q.weight_scale", "norm.weight", "a constant"]
    shaped = {arguments[0] for name, arguments in trt.calls if name == "IOptimizationProfile.set_shape"}
    assert shaped == {"latents", "cos"}
    model.write_bytes(b"no graph")
    with pytest.raises(QwenImageError, match=r"step: .*graph\.onnx is no graph \(.*\); export it again"):
        builder().build(job(tmp_path, model=str(model), options=BuildOptions(weights="bound")), go_on)


def test_the_softmax_scale_in_bfloat16(trt: FakeTensorRT) -> None:
    torch = pytest.importorskip("torch")
    made = importlib.import_module("qwen_image_engine.engines.tensorrt.build.builder").SoftmaxScale(1 / 448)
    assert made.bits.dtype == np.uint16
    assert made.bits.item() == torch.tensor(1 / 448).bfloat16().view(torch.uint16).item()


def test_options(trt: FakeTensorRT, tmp_path: Path) -> None:
    builder().build(job(tmp_path), go_on)
    flags = [arguments[0].name for name, arguments in trt.calls if name == "IBuilderConfig.set_flag"]
    assert flags == []
    assert "IBuilderConfig.set_memory_pool_limit" not in trt.names()
    options = BuildOptions(strip_weights=True, weight_streaming=True, workspace_bytes=1 << 30)
    builder().build(job(tmp_path, options=options, model=str(quantised_graph(tmp_path))), go_on)
    flags = [arguments[0].name for name, arguments in trt.calls if name == "IBuilderConfig.set_flag"]
    assert flags == ["STRIP_PLAN", "REFIT_INDIVIDUAL", "WEIGHT_STREAMING"]
    ((pool, limit),) = [item for name, item in trt.calls if name == "IBuilderConfig.set_memory_pool_limit"]
    assert (pool.name, limit) == ("WORKSPACE", 1 << 30)
    cleared = {arguments[0].name for name, arguments in trt.calls if name == "IBuilderConfig.clear_flag"}
    assert cleared == {"TF32"}


def test_timings_of_another_platform_are_left_out(trt: FakeTensorRT, tmp_path: Path) -> None:
    (tmp_path / "step.timing").write_bytes(b"of another GPU")
    accepted = iter((False, True))
    trt.returns["IBuilderConfig.set_timing_cache"] = lambda config, cache, ignore: next(accepted)
    builder().build(job(tmp_path), go_on)
    read = [arguments[0] for name, arguments in trt.calls if name == "IBuilderConfig.create_timing_cache"]
    assert read == [b"of another GPU", b""]


def test_damaged_timings_are_left_out(trt: FakeTensorRT, tmp_path: Path) -> None:
    (tmp_path / "step.timing").write_bytes(b"damaged")
    read = trt.fake("ITimingCache")
    trt.returns["IBuilderConfig.create_timing_cache"] = lambda config, data: None if data else read
    assert builder().build(job(tmp_path), go_on).warnings == ()
    taken = [arguments[0] for name, arguments in trt.calls if name == "IBuilderConfig.set_timing_cache"]
    assert taken == [read]
    assert (tmp_path / "step.timing").read_bytes() == b"timings"


def test_timings_that_cannot_be_kept_cost_no_engine(trt: FakeTensorRT, tmp_path: Path) -> None:
    result = builder().build(job(tmp_path, timing_cache=str(tmp_path / "gone" / "a.timing")), go_on)
    (warning,) = result.warnings
    assert warning.endswith("a.timing: timings of kernels are not kept (No such file or directory)")
    (tmp_path / "folder.timing").mkdir()
    result = builder().build(job(tmp_path, timing_cache=str(tmp_path / "folder.timing")), go_on)
    assert [item.partition(": ")[2] for item in result.warnings] == [
        "timings of kernels cannot be read (Is a directory)",
        "timings of kernels are not kept (Is a directory)",
    ]
    assert not [*tmp_path.glob(".*")]


def test_failures_in_words(trt: FakeTensorRT, tmp_path: Path) -> None:
    module = builder()
    errors = {
        "node_name": lambda error: "node_7",
        "node_operator": lambda error: "Resize",
        "desc": lambda error: "unsupported",
    }
    trt.returns |= {f"ParserError.{name}": function for name, function in errors.items()}
    trt.returns["OnnxParser.parse_from_file"] = lambda parser, model: False
    trt.returns["OnnxParser.get_error"] = lambda parser, index: trt.fake("ParserError")
    trt.OnnxParser.num_errors = 1
    with pytest.raises(QwenImageError, match=r"cannot parse step\.onnx: node_7 \(Resize\): unsupported; see what"):
        module.build(job(tmp_path), go_on)
    trt.returns["OnnxParser.parse_from_file"] = lambda parser, model: True

    with pytest.raises(QwenImageError, match="1 attentions read FP8 in the parsed graph, expected at least 2"):
        module.build(job(tmp_path, promise=ExpectedFusions(1, 0, 2, ("attention_0",))), go_on)
    short = Profile("a", {"latents": PROFILES[0].shapes["latents"]})
    with pytest.raises(QwenImageError, match=r"has the inputs \['cos', 'latents'\], its contract \['latents'\]"):
        module.build(job(tmp_path, profiles=(short,)), go_on)
    trt.returns["EngineInspector.get_engine_information"] = lambda inspector, format: inspected("BF16")
    with pytest.raises(QwenImageError, match="0 products in FP8 of 1; in a higher precision: gemm_q"):
        module.build(job(tmp_path), go_on)
    trt.returns["IBuilderConfig.add_optimization_profile"] = lambda config, profile: -1
    with pytest.raises(QwenImageError, match="does not take the profile 512x512"):
        module.build(job(tmp_path), go_on)
    del trt.returns["IBuilderConfig.add_optimization_profile"]
    trt.returns["Builder.build_serialized_network_to_stream"] = lambda builder, network, config, writer: False
    with pytest.raises(QwenImageError, match="TensorRT cannot build it: it gives no reason; where memory ran out"):
        module.build(job(tmp_path), go_on)


def test_a_full_disk_is_an_error_though_cpp_hides_exceptions(trt: FakeTensorRT, tmp_path: Path) -> None:
    plan = importlib.import_module("qwen_image_engine.engines.tensorrt.build.plan_writer")
    writer = plan.PlanWriter(Path("/dev/full"))
    assert writer.write(b"x" * (1 << 20)) == 0
    with pytest.raises(OSError, match="No space left") as caught:
        writer.close()
    assert caught.value.errno == errno.ENOSPC


def test_errors_are_kept_for_the_message(trt: FakeTensorRT, capfd: pytest.CaptureFixture[str]) -> None:
    log = importlib.import_module("qwen_image_engine.engines.tensorrt.bindings").Log()
    severity = trt.ILogger.Severity
    log.log(severity.INFO, "chatter")
    log.log(severity.WARNING, "careful")
    log.log(severity.ERROR, "no kernel\nfor this")
    assert log.errors() == "no kernel for this"
    assert capfd.readouterr().err == "TensorRT: careful\nTensorRT: no kernel\nfor this\n"
    log.clear()
    assert log.errors() == "it gives no reason"


def test_an_error_of_an_earlier_call_is_not_blamed(trt: FakeTensorRT, tmp_path: Path) -> None:
    def parse(parser: Any, model: str) -> bool:
        loggers[-1].log(trt.ILogger.Severity.ERROR, "while parsing")
        return True

    loggers: list[Any] = []
    trt.returns["OnnxParser.__init__"] = lambda parser, network, logger: loggers.append(logger)
    trt.returns["OnnxParser.parse_from_file"] = parse
    trt.returns["Builder.build_serialized_network_to_stream"] = lambda builder, network, config, writer: False
    with pytest.raises(QwenImageError, match="TensorRT cannot build it: it gives no reason"):
        builder().build(job(tmp_path), go_on)


def test_refitting(trt: FakeTensorRT) -> None:
    refit = importlib.import_module("qwen_image_engine.engines.tensorrt.refit").refit
    log = importlib.import_module("qwen_image_engine.engines.tensorrt.bindings").Log()
    engine = trt.fake("ICudaEngine")
    trt.returns["Refitter.get_missing_weights"] = lambda refitter: []
    refit(engine, Path("step.onnx"), log, "qwen-image build bundle")
    wanted = ["OnnxParserRefitter.refit_from_file", "Refitter.get_missing_weights", "Refitter.refit_cuda_engine"]
    assert [name for name in trt.names() if name in wanted] == wanted
    trt.returns["OnnxParserRefitter.refit_from_file"] = lambda refitter, model: False
    trt.OnnxParserRefitter.num_errors = 1
    trt.returns["OnnxParserRefitter.get_error"] = lambda parser, index: trt.fake("ParserError")
    trt.returns["ParserError.desc"] = lambda error: "of another shape"
    trt.returns["Refitter.refit_cuda_engine"] = lambda refitter: False
    with pytest.raises(
        QwenImageError,
        match=r"0 weights of the plan .* \(of another shape\); build it again",
    ):
        refit(engine, Path("step.onnx"), log, "qwen-image build bundle")
    trt.returns["Refitter.get_missing_weights"] = lambda refitter: ["to_q.weight"]
    with pytest.raises(QwenImageError, match=r"1 weights of the plan .* are not in it \(to_q\.weight\)"):
        refit(engine, Path("step.onnx"), log, "qwen-image build bundle")


def test_the_fake_has_what_the_stub_has(trt: FakeTensorRT) -> None:
    config = trt.fake("IBuilderConfig")
    with pytest.raises(AttributeError):
        trt.BuilderFlag.FP16  # noqa: B018
    with pytest.raises(AttributeError, match="no max_workspace_size"):
        config.max_workspace_size = 1
    with pytest.raises(AttributeError):
        config.set_calibration_profile(None)
    with pytest.raises(TypeError, match=r"IBuilderConfig\.set_flag: missing a required argument"):
        config.set_flag()
