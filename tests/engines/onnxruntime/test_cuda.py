"""ONNX Runtime's CUDA engine without a GPU: what it refuses, and its bindings on the CPU's provider."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from qwen_image_engine.engines.backends import available, load_engine
from qwen_image_engine.engines.core.bfloat16 import to_bfloat16
from qwen_image_engine.engines.core.contract import Contract, TensorSpec
from qwen_image_engine.engines.core.device_array import DeviceArray
from qwen_image_engine.engines.core.engine import Array
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.cuda.driver import DeviceInfo
from qwen_image_engine.engines.onnxruntime import package
from qwen_image_engine.engines.onnxruntime.cuda import Device, OnnxRuntimeCudaEngine
from tests.support.numpy_memory import NumpyMemory, on_device

StepInputs = Callable[..., dict[str, Array]]
WriteGraph = Callable[..., Path]
HERE = Device("cpu", "CPUExecutionProvider", {}, NumpyMemory(0))
CUDA = pytest.importorskip("onnxruntime").get_available_providers()[:1] == [package.CUDA_PROVIDER]


@pytest.mark.skipif(CUDA, reason="this ONNX Runtime is built with CUDA")
def test_onnxruntime_without_cuda_is_told(step_model: Path, step_contract: Contract) -> None:
    with pytest.raises(QwenImageError) as caught:
        load_engine("onnxruntime-cuda", step_model, step_contract)
    words = str(caught.value)
    assert "is installed without CUDA" in words
    assert "must not both be installed" in words
    assert "pip install 'qwen-image-engine[cuda]'" in words
    assert {item.name: item.missing for item in available()}["onnxruntime-cuda"] == words


def test_no_driver_is_told(step_model: Path, step_contract: Contract, monkeypatch: pytest.MonkeyPatch) -> None:
    built = SimpleNamespace(get_available_providers=lambda: [package.CUDA_PROVIDER], __version__="1.31.1")
    monkeypatch.setitem(sys.modules, "onnxruntime", built)

    def absent() -> None:
        raise QwenImageError("no CUDA driver: libcuda.so.1 cannot be loaded")

    monkeypatch.setattr(package, "device_info", absent)
    with pytest.raises(QwenImageError, match="no CUDA driver"):
        load_engine("onnxruntime-cuda", step_model, step_contract)


@pytest.mark.parametrize(
    ("compute_capability", "runs"),
    [("7.0", False), ("7.5", True), ("8.9", True), ("9.0", True), ("10.0", False), ("10.3", False), ("12.1", True)],
)
def test_a_gpu_that_the_package_has_no_kernels_for_is_told(
    monkeypatch: pytest.MonkeyPatch, compute_capability: str, runs: bool
) -> None:
    built = SimpleNamespace(get_available_providers=lambda: [package.CUDA_PROVIDER], __version__="1.31.1")
    monkeypatch.setitem(sys.modules, "onnxruntime", built)
    monkeypatch.setattr(package, "device_info", lambda: DeviceInfo("A GPU", compute_capability, 13000, 1, 1))
    if runs:
        assert package.onnxruntime_cuda() is built
        return
    words = rf"A GPU has compute capability {compute_capability}, .* kernels for 7\.5, 8\.0, 9\.0, 12\.0 and later"
    with pytest.raises(QwenImageError, match=words):
        package.onnxruntime_cuda()


def test_a_provider_that_did_not_load_is_told(
    step_model: Path, step_contract: Contract, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = "onnxruntime.InferenceSession.get_providers"
    monkeypatch.setattr(session, lambda self: ["AnotherProvider"])
    with pytest.raises(QwenImageError, match="did not load CPUExecutionProvider; it needs the libraries of CUDA 13"):
        OnnxRuntimeCudaEngine(step_model, step_contract, HERE)


def test_work_on_another_provider_is_refused(
    step_model: Path, step_contract: Contract, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph runs on the CPU's provider, and the device says that it is another."""
    session = "onnxruntime.InferenceSession.get_providers"
    monkeypatch.setattr(session, lambda self: ["CPUExecutionProvider", "AnotherProvider"])
    monkeypatch.setattr(
        "onnxruntime.InferenceSession.get_provider_graph_assignment_info",
        lambda self: [
            SimpleNamespace(
                ep_name="AnotherProvider",
                get_nodes=lambda: [SimpleNamespace(op_type="Gemm"), SimpleNamespace(op_type="Shape")],
            )
        ],
    )
    with pytest.raises(QwenImageError, match=r"step: Gemm of .* would run on the CPU"):
        OnnxRuntimeCudaEngine(step_model, step_contract, HERE)


def test_what_runs_where_is_recorded(step_model: Path, step_contract: Contract) -> None:
    """Without the session's record the check above would pass whatever happens."""
    session = OnnxRuntimeCudaEngine(step_model, step_contract, HERE)._session
    found = [node.op_type for part in session.get_provider_graph_assignment_info() for node in part.get_nodes()]
    assert len(found) > 3


@pytest.mark.parametrize("where", ["host", "device"])
def test_bindings_give_what_the_cpu_engine_gives(
    step_model: Path, step_contract: Contract, step_inputs: StepInputs, where: str
) -> None:
    inputs = step_inputs(batch=2, tokens=5, prefix=3)
    expected = load_engine("onnxruntime", step_model, step_contract).run(inputs)
    cached = {
        name: on_device(array) if where == "device" and name.startswith(("key_", "value_")) else array
        for name, array in inputs.items()
    }
    running = OnnxRuntimeCudaEngine(step_model, step_contract, HERE)
    found = running.run(cached)
    np.testing.assert_array_equal(found["velocity"], expected["velocity"])
    running.close()
    running.close()
    with pytest.raises(QwenImageError, match="closed"):
        running.run(cached)


def through(name: str, dtype: str) -> Contract:
    """Keys in, keys out, on an axis that is a sum."""
    cache = TensorSpec("key_0", ("batch", "prefix", 2, 4), dtype, "")
    own = TensorSpec("own_key_0", ("batch", "prefix", 2, 4), dtype, "")
    return Contract(name, "", (cache,), (own,))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("where", ["host", "device"])
def test_keys_stay_on_the_device_in_their_dtype(write_graph: WriteGraph, dtype: str, where: str) -> None:
    from onnx import helper

    contract = through("prefix", dtype)
    model = write_graph(contract, helper.make_node("Identity", ["key_0"], ["own_key_0"]))
    values = np.random.default_rng(0).standard_normal((1, 7, 2, 4)).astype(np.float32)
    given = on_device(values, dtype)[:, 2:6] if where == "device" else values[:, 2:6]
    found = OnnxRuntimeCudaEngine(model, contract, HERE).run({"key_0": given})["own_key_0"]
    assert isinstance(found, DeviceArray)
    assert (found.dtype, found.shape) == (dtype, (1, 4, 2, 4))
    if dtype == "bfloat16":
        expected = (to_bfloat16(values[:, 2:6]).astype(np.uint32) << 16).view(np.float32)
    else:
        expected = values[:, 2:6].astype(dtype)
    np.testing.assert_array_equal(found.numpy(), expected)


def test_inputs_are_checked(step_model: Path, step_contract: Contract, step_inputs: StepInputs) -> None:
    running = OnnxRuntimeCudaEngine(step_model, step_contract, HERE)
    inputs = step_inputs(batch=1, tokens=5, prefix=3)
    with pytest.raises(QwenImageError, match="input cos is missing"):
        running.run({name: array for name, array in inputs.items() if name != "cos"})
    wrong = replace(on_device(inputs["key_0"]), dtype="float16")
    with pytest.raises(QwenImageError, match="input key_0 is float16"):
        running.run({**inputs, "key_0": wrong})
