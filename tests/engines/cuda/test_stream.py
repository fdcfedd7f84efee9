"""Captures and page-locked memory, on a driver that is played."""

import ctypes
from typing import Any

import pytest

from qwen_image_engine.engines.core.errors import OutOfDeviceMemory, QwenImageError
from qwen_image_engine.engines.cuda.memory import CudaContext, CudaMemory
from qwen_image_engine.engines.cuda.stream import CudaStream, HostMemory
from tests.support.fake_cuda import FakeDriver


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver()


@pytest.fixture
def context(driver: FakeDriver) -> CudaContext:
    played: Any = driver
    return CudaContext(played, ctypes.c_void_p(1))


def test_memory_may_be_freed_while_a_graph_is_captured(context: CudaContext, driver: FakeDriver) -> None:
    """As the garbage collector does, whenever it likes."""
    held = [CudaMemory(context, 16)]
    graph = CudaStream(context).capture(held.clear)
    assert driver.calls["cuMemFree_v2"] == 1
    graph.launch()


def test_a_capture_that_the_driver_refuses_is_told(context: CudaContext, driver: FakeDriver) -> None:
    driver.do_cuStreamBeginCapture_v2 = lambda stream, mode: 900  # type: ignore[method-assign,assignment,misc]
    with pytest.raises(QwenImageError, match="cuStreamBeginCapture_v2 with error 900, an error; see") as caught:
        CudaStream(context).capture(lambda: None)
    assert not isinstance(caught.value, OutOfDeviceMemory)


@pytest.mark.parametrize("function", ["cuMemHostAlloc", "cuGraphInstantiateWithFlags"])
def test_memory_that_ran_out_is_told_as_such(context: CudaContext, driver: FakeDriver, function: str) -> None:
    setattr(driver, f"do_{function}", lambda *arguments: 2)
    with pytest.raises(OutOfDeviceMemory, match=f"{function} with error 2, out of memory; free some"):
        HostMemory(context, 8) if "Host" in function else CudaStream(context).capture(lambda: None)
