"""Who builds, and for which GPUs."""

from collections.abc import Callable

import pytest

from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.engines.cuda.compute_capability import TENSORRT_RTX
from qwen_image_engine.engines.cuda.driver import DeviceInfo
from qwen_image_engine.runtime.tools.build.platform import (
    Platform,
    choose_builder,
    chosen_capabilities,
)
from tests.support.builders import install_builders
from tests.support.played_build import GPU

BOTH = {"tensorrt": "11.4.0.106", "tensorrt_rtx": "1.7.1.116"}


def no_gpu() -> DeviceInfo:
    raise QwenImageError("no CUDA driver")


@pytest.mark.parametrize(
    ("installed", "device", "chosen_gpus", "builder"),
    [
        (("tensorrt",), no_gpu, False, "tensorrt"),
        (("tensorrt_rtx",), lambda: GPU, False, "tensorrt-rtx"),
        (tuple(BOTH), lambda: GPU, False, "tensorrt"),
        (tuple(BOTH), no_gpu, False, "tensorrt-rtx"),
        (tuple(BOTH), lambda: GPU, True, "tensorrt-rtx"),
    ],
)
def test_who_builds_without_a_wish(
    monkeypatch: pytest.MonkeyPatch,
    installed: tuple[str, ...],
    device: Callable[[], DeviceInfo],
    chosen_gpus: bool,
    builder: str,
) -> None:
    install_builders(monkeypatch, **{name: BOTH[name] for name in installed})
    assert choose_builder(None, chosen_gpus, device).engine == builder


def test_a_wish_that_cannot_be_had_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    install_builders(monkeypatch)
    install = r"pip install 'qwen-image-engine\[tensorrt-rtx\]'"
    with pytest.raises(QwenImageError, match=f"neither tensorrt-rtx nor tensorrt is installed; .*{install}"):
        choose_builder(None, False, no_gpu)
    with pytest.raises(QwenImageError, match=f"^tensorrt-rtx is not installed; install it with: {install}$"):
        choose_builder("tensorrt-rtx", False, no_gpu)
    with pytest.raises(UsageError, match="--engine openvino: builds no engines; expected tensorrt or tensorrt-rtx"):
        choose_builder("openvino", False, no_gpu)


def test_capabilities_are_in_order_and_each_once() -> None:
    assert chosen_capabilities(("12.0", "8.9", "12.0"), 8.0) == ("8.9", "12.0")
    assert chosen_capabilities((), 8.0) == ("8.6", "8.9", "12.0")
    assert chosen_capabilities((), 8.9) == ("8.9", "12.0")
    assert chosen_capabilities((), None) == ("8.6", "8.9", "12.0")
    with pytest.raises(UsageError, match=r"--compute-capability 9.0: TensorRT for RTX builds for 7.5, 8.0, 8.6, 8.9"):
        chosen_capabilities(("8.9", "9.0"), 8.0)


def test_capabilities_are_those_of_the_compiler() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    known = {name.removeprefix("SM") for name in trt.ComputeCapability.__members__ if name.startswith("SM")}
    assert {item.replace(".", "") for item in TENSORRT_RTX} == known


def test_a_platform_is_told_in_words() -> None:
    rtx = Platform("tensorrt-rtx", "1.7.1.116", ("8.9", "12.0"))
    assert str(rtx) == "TensorRT for RTX 1.7.1.116 for compute capability 8.9, 12.0"
    assert rtx.slug == "tensorrt-rtx-1.7.1.116-sm-8.9-12.0"
    assert str(Platform.of_device("11.4.0.106", GPU)) == f"TensorRT 11.4.0.106 for {GPU.name}"
