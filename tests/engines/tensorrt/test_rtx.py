"""What is asked of TensorRT for RTX alone, held against the stub of its real API and, without a GPU, against itself."""

from __future__ import annotations

import enum
import inspect
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.cuda.driver import DeviceInfo
from qwen_image_engine.engines.tensorrt.jit_cache import jit_cache_path, read_kernels, write_kernels
from qwen_image_engine.engines.tensorrt.package import choose
from tests.support import fake_tensorrt_rtx
from tests.support.fake_tensorrt import FakeTensorRT, forget_modules

DEVICE = DeviceInfo("NVIDIA GeForce RTX 5090", "12.0", 13020, 1 << 35, 1 << 34)
VERSION = "1.7.1.116"


@pytest.fixture
def trt(tensorrt_rtx_stub: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorRT]:
    """The module of the stub, chosen by this process."""
    fake = FakeTensorRT(tensorrt_rtx_stub)
    fake.__dict__["__version__"] = VERSION
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake)
    forget_modules()
    choose("tensorrt-rtx")
    yield fake
    forget_modules()


@pytest.fixture
def session(trt: FakeTensorRT) -> Any:
    from qwen_image_engine.engines.tensorrt.bindings import process_log

    context = SimpleNamespace(current=nullcontext)
    runtime, log = trt.fake("Runtime", engine_header_size=64), process_log()
    trt.calls.clear()
    return SimpleNamespace(device=DEVICE, version=VERSION, log=log, runtime=runtime, context=context)


def test_every_call_is_one_of_the_real_api(trt: FakeTensorRT, session: Any, tmp_path: Path) -> None:
    from qwen_image_engine.engines.tensorrt.rtx import JitContexts, check_validity

    plan = tmp_path / "step-ab.plan"
    plan.write_bytes(bytes(100))
    trt.returns["Runtime.get_engine_validity"] = lambda runtime, buffer: (trt.EngineValidity.VALID, 0)  # type: ignore[attr-defined]
    check_validity(session, "step", plan, "qwen-image build")
    assert trt.calls == [("Runtime.get_engine_validity", (bytes(64),))]

    class Kernels(bytes):
        nbytes = 3

    trt.returns["IRuntimeCache.serialize"] = lambda cache: Kernels(b"abc")
    jit_cache_path(plan, DEVICE, VERSION).write_bytes(b"ab")
    contexts = JitContexts(session, trt.fake("ICudaEngine"), "step", plan, "eager", graphs=True)
    contexts.make()
    contexts.keep()
    assert trt.names()[1:] == [
        "ICudaEngine.create_runtime_config",
        "IRuntimeConfig.set_execution_context_allocation_strategy",
        "IRuntimeConfig.create_runtime_cache",
        "IRuntimeCache.deserialize",
        "IRuntimeConfig.set_runtime_cache",
        "ICudaEngine.create_execution_context",
        "IRuntimeCache.serialize",
    ]
    (config,) = dict(trt.calls)["ICudaEngine.create_execution_context"]
    assert config.cuda_graph_strategy.name == "WHOLE_GRAPH_CAPTURE"
    assert config.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
    assert (tmp_path / "step-ab.nvidia-geforce-rtx-5090-13.2-1.7.1.116.jit").read_bytes() == b"abc"


def test_compute_capabilities_are_set_by_their_names(trt: FakeTensorRT, session: Any) -> None:
    from qwen_image_engine.engines.tensorrt.rtx import set_compute_capabilities

    config = trt.fake("IBuilderConfig")
    set_compute_capabilities(config, "step", ["8.6", "12.0"], session.log)
    assert config.num_compute_capabilities == 2
    assert [(name, kind.name, index) for name, (kind, index) in trt.calls] == [
        ("IBuilderConfig.set_compute_capability", "SM86", 0),
        ("IBuilderConfig.set_compute_capability", "SM120", 1),
    ]
    with pytest.raises(QwenImageError, match=r"step: TensorRT for RTX does not build for compute capability 9\.0"):
        set_compute_capabilities(config, "step", ["9.0"], session.log)


def test_what_is_played_is_in_the_real_api(trt: Any) -> None:
    module = fake_tensorrt_rtx.fake_tensorrt_rtx({}, SimpleNamespace())  # type: ignore[arg-type]
    for name, played in vars(module).items():
        if not inspect.isclass(played) or name == "Dims":
            continue
        real = getattr(trt, name)
        if issubclass(played, enum.Enum):
            assert {item.name for item in played} <= set(dir(real)), name
            continue
        for method, _ in inspect.getmembers(played, inspect.isfunction):
            assert method.startswith("_") or hasattr(real, method), f"{name}.{method}"


@pytest.mark.process
def test_the_real_runtime_tells_what_is_no_engine(tmp_path: Path) -> None:
    """Which needs no GPU: the check of the header's first bytes comes before that of the card."""
    pytest.importorskip("tensorrt_rtx_libs")
    files = [tmp_path / name for name in ("empty", "short", "zeros")]
    for file, contents in zip(files, (b"", b"vtrt", bytes(200)), strict=True):
        file.write_bytes(contents)
    done = subprocess.run([sys.executable, "-c", MALFORMED, *files], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [
        f"step: TensorRT for RTX cannot use {file}: it is no engine file or is damaged; build it again with: BUILD"
        for file in files
    ], done.stderr


MALFORMED = """
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from qwen_image_engine.engines.cuda.driver import DeviceInfo
from qwen_image_engine.engines.tensorrt.package import choose

package = choose("tensorrt-rtx")
from qwen_image_engine.engines.tensorrt.bindings import process_log
from qwen_image_engine.engines.tensorrt.rtx import check_validity

log = process_log()
runtime = package.Runtime(log)
assert runtime.engine_header_size == 64
context = SimpleNamespace(current=nullcontext)
device = DeviceInfo("A GPU", "8.9", 13000, 0, 0)
session = SimpleNamespace(device=device, version=package.__version__, log=log, runtime=runtime, context=context)
for file in sys.argv[1:]:
    try:
        check_validity(session, "step", Path(file), "BUILD")
    except Exception as error:
        print(error)
"""


def test_each_plan_card_driver_and_version_has_a_file(tmp_path: Path) -> None:
    plan = tmp_path / "step-ab.plan"
    found = [
        jit_cache_path(plan, DEVICE, VERSION),
        jit_cache_path(tmp_path / "step-cd.plan", DEVICE, VERSION),
        jit_cache_path(plan, DeviceInfo("A / card\x00…", "8.9", 13020, 0, 0), VERSION),
        jit_cache_path(plan, DeviceInfo(DEVICE.name, "12.0", 13000, 0, 0), VERSION),
        jit_cache_path(plan, DEVICE, "1.7.2.0"),
    ]
    assert len(set(found)) == len(found)
    assert found[2].name == "step-ab.a-card-13.2-1.7.1.116.jit"
    assert {path.parent for path in found} == {tmp_path}
    assert len(jit_cache_path(plan, DeviceInfo("x" * 255, "8.9", 13020, 0, 0), VERSION).name) < 128


def test_what_is_written_is_read_and_what_fails_leaves_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jit"
    assert read_kernels(path) == b""
    write_kernels(path, b"one")
    assert read_kernels(path) == b"one"
    with pytest.raises(TypeError):
        write_kernels(path, None)  # type: ignore[arg-type]
    assert read_kernels(path) == b"one"
    assert [item.name for item in tmp_path.iterdir()] == ["a.jit"]
