import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from onnx import TensorProto, helper

from qwen_image_engine.engines.backends import available, load_engine
from qwen_image_engine.engines.core.contract import Contract, TensorSpec
from qwen_image_engine.engines.core.engine import Array, Engine
from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.engines.openvino.package import core

StepInputs = Callable[..., dict[str, Array]]
EXTRAS = {"onnxruntime": "cpu", "openvino": "openvino"}


def test_unknown_backend_names_the_known(step_contract: Contract) -> None:
    with pytest.raises(UsageError, match=r"unknown engine 'tvm'; known: onnxruntime, .*, tensorrt, tensorrt-rtx$"):
        load_engine("tvm", Path("step.onnx"), step_contract)


def test_threads_below_one_are_refused(step_contract: Contract) -> None:
    with pytest.raises(UsageError, match="0 threads"):
        load_engine("onnxruntime", Path("step.onnx"), step_contract, threads=0)


@pytest.mark.parametrize("name", EXTRAS)
def test_backend_not_installed(name: str, step_contract: Contract, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(QwenImageError) as caught:
        load_engine(name, Path("step.onnx"), step_contract)
    wanted = f"{name} is not installed; install it with: pip install 'qwen-image-engine[{EXTRAS[name]}]'"
    assert str(caught.value) == wanted
    assert {b.name: b.missing for b in available()}[name] == wanted


def test_backend_that_does_not_load(monkeypatch: pytest.MonkeyPatch, step_contract: Contract) -> None:
    def broken(name: str) -> ModuleType:
        raise ImportError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr("qwen_image_engine.engines.core.packages.import_module", broken)
    with pytest.raises(QwenImageError, match=r"onnxruntime is installed and does not load .libcudart"):
        load_engine("onnxruntime", Path("step.onnx"), step_contract)


def test_available_gives_the_version(backend: str) -> None:
    facts = {b.name: b for b in available()}[backend]
    assert facts.version == sys.modules[backend].__version__
    assert facts.missing is None


@pytest.mark.parametrize("engine", ["onnxruntime-cuda", "tensorrt", "tensorrt-rtx"])
def test_an_engine_of_another_system_is_told(
    engine: str, step_model: Path, step_contract: Contract, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    words = r"is not published for macOS, only for Linux and Windows; engines for macOS: onnxruntime, openvino, open"
    with pytest.raises(QwenImageError, match=words) as caught:
        load_engine(engine, step_model, step_contract)
    assert {b.name: b.missing for b in available()}[engine] == str(caught.value)


OLDER = {"onnxruntime": "1.22.1", "openvino": "2025.4.1"}


def test_an_older_package_is_refused_by_both_versions(
    backend: str, step_model: Path, step_contract: Contract, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{backend}.__version__", OLDER[backend])
    words = rf"^{backend} {OLDER[backend]} is installed, older than the supported >=.*\[{EXTRAS[backend]}\]'$"
    with pytest.raises(QwenImageError, match=words) as caught:
        load_engine(backend, step_model, step_contract)
    assert {b.name: b.missing for b in available()}[backend] == str(caught.value)


def test_a_newer_package_is_tried_and_the_first_error_names_both_versions(
    backend: str, step_contract: Contract, write_graph: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{backend}.__version__", "3000.1")
    newer = f"{backend} 3000.1 is installed, newer than the supported >="
    facts = {b.name: b for b in available()}[backend]
    assert facts.version == "3000.1"
    assert str(facts.newer).startswith(newer)
    pair = tuple(TensorSpec(name, (axis,), "float32", "") for name, axis in (("a", "m"), ("b", "n"), ("y", "m")))
    toy = Contract("toy", "", pair[:2], pair[2:])
    engine = load_engine(backend, write_graph(toy, helper.make_node("Add", ["a", "b"], ["y"])), toy)
    assert engine.run({"a": np.ones(2, np.float32), "b": np.ones(2, np.float32)})["y"].tolist() == [2, 2]
    with pytest.raises(QwenImageError, match=rf"the run in .* failed for m=2, n=3: .*; {newer}"):
        engine.run({"a": np.ones(2, np.float32), "b": np.ones(3, np.float32)})
    engine.close()
    unknown = write_graph(step_contract, helper.make_node("OfTomorrow", ["latents"], ["velocity"]))
    with pytest.raises(QwenImageError, match=rf"cannot load .*; {newer}") as caught:
        load_engine(backend, unknown, step_contract)
    assert "export the bundle again" not in str(caught.value)


@pytest.mark.parametrize(("batch", "tokens", "prefix"), [(1, 5, 3), (4, 5, 3), (2, 9, 1), (1, 1, 70)])
def test_run_equals_numpy_at_every_size(
    backend: str,
    step_model: Path,
    step_contract: Contract,
    step_inputs: StepInputs,
    step_velocity: Callable[[dict[str, Array]], Array],
    batch: int,
    tokens: int,
    prefix: int,
) -> None:
    engine = load_engine(backend, step_model, step_contract, threads=1)
    inputs = step_inputs(batch, tokens, prefix)
    before = {name: array.copy() for name, array in inputs.items()}
    found = engine.run(inputs)
    engine.close()
    wanted = step_velocity(inputs)
    assert found.keys() == {"velocity"}
    assert found["velocity"].dtype == np.float32
    # fp32 sums of 256 products: 1e-6; bf16, which OpenVINO takes where it may, would be 2e-3.
    assert np.linalg.norm(found["velocity"] - wanted) <= 1e-6 * np.linalg.norm(wanted)
    assert all(np.array_equal(inputs[name], before[name]) for name in inputs)


def test_one_engine_serves_every_size_and_keeps_no_output(
    backend: str, step_model: Path, step_contract: Contract, step_inputs: StepInputs
) -> None:
    engine: Engine = load_engine(backend, step_model, step_contract)
    assert engine.contract is step_contract
    first = engine.run(step_inputs(1, 5, 3))["velocity"]
    kept = first.copy()
    assert engine.run(step_inputs(3, 8, 2))["velocity"].shape == (3, 8, 8)
    again = engine.run(step_inputs(1, 5, 3))["velocity"]
    assert np.array_equal(first, kept)
    assert np.array_equal(again, kept)
    engine.close()


def test_inputs_need_not_be_contiguous(
    backend: str,
    step_model: Path,
    step_contract: Contract,
    step_inputs: StepInputs,
    step_velocity: Callable[[dict[str, Array]], Array],
) -> None:
    inputs = step_inputs(2, 5, 3)
    inputs["latents"] = np.asfortranarray(inputs["latents"])
    inputs["key_0"] = inputs["key_0"][::-1]
    inputs["cos"].setflags(write=False)
    engine = load_engine(backend, step_model, step_contract)
    np.testing.assert_allclose(engine.run(inputs)["velocity"], step_velocity(inputs), atol=1e-4)
    engine.close()


def test_closed_engine_refuses_to_run(
    backend: str, step_model: Path, step_contract: Contract, step_inputs: StepInputs
) -> None:
    engine = load_engine(backend, step_model, step_contract)
    engine.close()
    engine.close()
    with pytest.raises(QwenImageError, match=r"step: this engine is closed"):
        engine.run(step_inputs())


def test_wrong_input_is_refused_before_the_run(
    backend: str, step_model: Path, step_contract: Contract, step_inputs: StepInputs
) -> None:
    engine = load_engine(backend, step_model, step_contract)
    inputs = step_inputs()
    inputs["cos"] = inputs["cos"].astype(np.float64)
    with pytest.raises(QwenImageError, match="step: input cos is float64"):
        engine.run(inputs)
    engine.close()


def test_missing_file(backend: str, tmp_path: Path, step_contract: Contract) -> None:
    with pytest.raises(QwenImageError, match=r"cannot read .*absent.onnx: No such file"):
        load_engine(backend, tmp_path / "absent.onnx", step_contract)
    with pytest.raises(QwenImageError, match="Is a directory"):
        load_engine(backend, tmp_path, step_contract)


@pytest.mark.parametrize("keep", [0, 1, 100, -40])
def test_truncated_file(
    backend: str, step_model: Path, step_contract: Contract, keep: int, capfd: pytest.CaptureFixture[str]
) -> None:
    step_model.write_bytes(step_model.read_bytes()[:keep])
    with pytest.raises(QwenImageError, match=r"step.onnx is no ONNX model, or is damaged"):
        load_engine(backend, step_model, step_contract)
    assert capfd.readouterr() == ("", "")


def test_garbage_file(
    backend: str, step_model: Path, step_contract: Contract, capfd: pytest.CaptureFixture[str]
) -> None:
    step_model.write_bytes(b"not a graph " * 50)
    with pytest.raises(QwenImageError, match="is no ONNX model"):
        load_engine(backend, step_model, step_contract)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", [b"cos_batch", b"velocity"])
def test_name_that_is_no_utf8_is_told_escaped(
    backend: str, step_model: Path, step_contract: Contract, name: bytes
) -> None:
    graph = step_model.read_bytes()
    at = graph.rindex(name)
    step_model.write_bytes(graph[:at] + b"\xff" + graph[at + 1 :])
    with pytest.raises(QwenImageError, match=re.escape(r"\xff" + name[1:].decode())):
        load_engine(backend, step_model, step_contract)


def test_weights_missing_or_short(backend: str, step_model: Path, step_contract: Contract) -> None:
    weights = step_model.parent / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(QwenImageError, match=r"step: .* cannot load .*step.onnx"):
        load_engine(backend, step_model, step_contract)
    weights.unlink()
    with pytest.raises(QwenImageError, match=r"weights.safetensors"):
        load_engine(backend, step_model, step_contract)


def test_graph_of_another_contract(backend: str, step_model: Path, step_contract: Contract) -> None:
    renamed = replace(step_contract, outputs=(replace(step_contract.outputs[0], name="noise"),))
    with pytest.raises(QwenImageError, match=r"another graph.*output noise is missing, output velocity is not known"):
        load_engine(backend, step_model, renamed)
    cos = replace(step_contract.inputs[2], shape=("tokens", 3))
    resized = replace(step_contract, inputs=(*step_contract.inputs[:2], cos, *step_contract.inputs[3:]))
    with pytest.raises(QwenImageError, match=r"input cos is float32 \(\?, 2\), expected float32 \(tokens, 3\)"):
        load_engine(backend, step_model, resized)


def test_axis_that_the_export_froze(backend: str, write_graph: Callable[..., Path]) -> None:
    frozen = Contract("toy", "", (TensorSpec("x", (1, 3), "float32", ""),), (TensorSpec("y", (1, 3), "float32", ""),))
    model = write_graph(frozen, helper.make_node("Neg", ["x"], ["y"]))
    free = replace(frozen, inputs=(TensorSpec("x", ("batch", 3), "float32", ""),))
    with pytest.raises(QwenImageError, match=r"input x is float32 \(1, 3\), expected float32 \(batch, 3\)"):
        load_engine(backend, model, free)


def test_not_enough_memory(backend: str, write_graph: Callable[..., Path]) -> None:
    """An intermediate of 2^48 bytes, more than a process can address: no machine's overcommit setting grants it."""
    vector = tuple(TensorSpec(name, ("tokens",), "float32", "") for name in "xy")
    toy = Contract("toy", "", vector[:1], vector[1:])
    model = write_graph(
        toy,
        helper.make_node("Reshape", ["x", "column"], ["xc"]),
        helper.make_node("Mul", ["x", "xc"], ["square"]),
        helper.make_node("ReduceMax", ["square", "last"], ["y"], keepdims=0),
        initializers=(
            helper.make_tensor("column", TensorProto.INT64, [2], [-1, 1]),
            helper.make_tensor("last", TensorProto.INT64, [1], [1]),
        ),
    )
    engine = load_engine(backend, model, toy)
    with pytest.raises(QwenImageError, match=r"not enough memory for tokens=8388608 .*smaller size") as caught:
        engine.run({"x": np.ones(1 << 23, np.float32)})
    assert "\n" not in str(caught.value)
    assert engine.run({"x": np.array([1, 3], np.float32)})["y"].tolist() == [3, 9]
    engine.close()


@pytest.mark.process
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="counts memory as Linux does")
def test_close_gives_the_memory_back(backend: str, write_graph: Callable[..., Path]) -> None:
    width, layers = 1024, 16
    rng = np.random.default_rng(0)
    weights = {f"w{i}": rng.random((width, width), np.float32) for i in range(layers)}
    nodes = [helper.make_node("Gemm", [f"x{i}", f"w{i}"], [f"x{i + 1}"], transB=1) for i in range(layers)]
    first, last = (TensorSpec(f"x{i}", ("n", width), "float32", "") for i in (0, layers))
    model = write_graph(Contract("toy", "", (first,), (last,)), *nodes, weights=weights)
    # In a process of its own: what other tests have left there comes and goes.
    done = subprocess.run([sys.executable, "-c", LOAD_AND_CLOSE, backend, str(model), last.name], capture_output=True)
    loaded, closed = map(float, done.stdout.split())
    # 64 MiB of weights; a quarter is room for the package's own memory and for what the allocator keeps.
    assert loaded >= 60, done.stderr
    assert closed <= 16


LOAD_AND_CLOSE = """
import subprocess
import sys
from pathlib import Path
from qwen_image_engine.engines.core.contract import Contract, TensorSpec
from qwen_image_engine.engines.backends import load_engine, require

def anonymous_mib():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))

backend, model, last = sys.argv[1:]
first, last = (TensorSpec(name, ("n", 1024), "float32", "") for name in ("x0", last))
require(backend)
before = anonymous_mib()
engine = load_engine(backend, Path(model), Contract("toy", "", (first,), (last,)))
loaded = anonymous_mib()
engine.close()
print(loaded - before, anonymous_mib() - before)
"""


@pytest.mark.process
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="counts memory as Linux does")
def test_memory_does_not_grow_with_new_shapes(backend: str, step_model: Path, step_contract: Contract) -> None:
    contract = json.dumps(step_contract.to_json())
    done = subprocess.run([sys.executable, "-c", RUN_NEW_SHAPES, backend, step_model, contract], capture_output=True)
    # With OpenVINO's default cache each shape adds 0.13 MB.
    assert float(done.stdout) <= 10e6, done.stderr


RUN_NEW_SHAPES = """
import json
import sys
from pathlib import Path
import numpy as np
from qwen_image_engine.engines.core.contract import Contract
from qwen_image_engine.engines.backends import load_engine
from qwen_image_engine.runtime.system.memory_use import MemoryUse

backend, model, contract = sys.argv[1:]
contract = Contract.from_json(json.loads(contract))
engine = load_engine(backend, Path(model), contract, threads=1)

def run(number):
    sizes = {"batch": 1, "tokens": 1 + number % 53, "prefix": 1 + number % 47}  # a new pair each time
    shapes = {spec.name: [sizes.get(axis, axis) for axis in spec.shape] for spec in contract.inputs}
    engine.run({name: np.ones(shape, np.float32) for name, shape in shapes.items()})

for number in range(200):
    run(number)
before = MemoryUse.of().anonymous_bytes
for number in range(200, 600):
    run(number)
print(MemoryUse.of().anonymous_bytes - before)
"""


def test_run_that_fails_is_told_in_one_line(backend: str, write_graph: Callable[..., Path]) -> None:
    pair = tuple(TensorSpec(name, (axis,), "float32", "") for name, axis in (("a", "m"), ("b", "n"), ("y", "m")))
    toy = Contract("toy", "", pair[:2], pair[2:])
    model = write_graph(toy, helper.make_node("Add", ["a", "b"], ["y"]))
    engine = load_engine(backend, model, toy)
    with pytest.raises(QwenImageError, match=r"toy: the run in .* failed for m=2, n=3") as caught:
        engine.run({"a": np.ones(2, np.float32), "b": np.ones(3, np.float32)})
    assert "\n" not in str(caught.value)
    with pytest.raises(QwenImageError, match=r"toy: output y is float32 \(3\), expected float32 \(m\) with m=1"):
        engine.run({"a": np.ones(1, np.float32), "b": np.ones(3, np.float32)})
    engine.close()


def test_openvino_computes_in_fp32(step_model: Path, step_contract: Contract) -> None:
    openvino = pytest.importorskip("openvino")
    from qwen_image_engine.engines.openvino.cpu import OpenVinoEngine

    engine = OpenVinoEngine(step_model, step_contract, threads=1)
    compiled = engine._compiled
    assert compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    engine.close()


def test_openvino_computes_in_bf16_where_asked_and_possible(step_model: Path, step_contract: Contract) -> None:
    openvino = pytest.importorskip("openvino")
    if "BF16" not in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(
            QwenImageError, match=r"step: this processor has no bf16 instructions.*use the engine openvino"
        ):
            load_engine("openvino-bf16", step_model, step_contract)
        return
    engine = load_engine("openvino-bf16", step_model, step_contract)
    compiled = engine._compiled  # type: ignore[attr-defined]
    assert compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.bf16
    engine.close()
