from dataclasses import replace

import pytest

from qwen_image_engine.engines.core.errors import OutOfDeviceMemory, QwenImageError
from qwen_image_engine.engines.cuda.driver import DeviceInfo
from qwen_image_engine.engines.plans.entry import PlanEntry
from qwen_image_engine.engines.plans.fit import check_memory_fits, check_plan_fits

HERE = DeviceInfo("NVIDIA H100", "9.0", 13010, total_bytes=80 << 30, free_bytes=10 << 30)
PLAN = PlanEntry("step.plan", "aa", "tensorrt", "11.4.0.106", ("9.0",), "NVIDIA H100", 13000, ())
REBUILD = "qwen-image build BUNDLE"


def test_the_same_tensorrt_gpu_and_a_driver_not_older_fit() -> None:
    check_plan_fits("step", PLAN, HERE, "11.4.0.106", REBUILD)
    with pytest.warns(RuntimeWarning, match=r"built on NVIDIA H200, this is NVIDIA H100: .*qwen-image build BUNDLE"):
        check_plan_fits("step", replace(PLAN, gpu="NVIDIA H200"), HERE, "11.4.0.106", REBUILD)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (replace(PLAN, version="11.1.0.1"), r"built by tensorrt 11\.1\.0\.1, this is 11\.4\.0\.106; build"),
        (
            replace(PLAN, gpu="NVIDIA L40S", compute_capabilities=("8.9",)),
            r"built on NVIDIA L40S for compute capability 8\.9, this is NVIDIA H100 \(9\.0\); build",
        ),
        (replace(PLAN, driver=13020), r"built with a driver of CUDA 13\.2, this one serves 13\.1; build"),
        (
            replace(PLAN, version="11.3.0.1", driver=13020),
            r"by tensorrt 11\.3\.0\.1, this is 11\.4\.0\.106, and with a driver .* with: qwen-image build BUNDLE$",
        ),
    ],
)
def test_another_machine_is_told_with_the_command(plan: PlanEntry, words: str) -> None:
    with pytest.raises(QwenImageError, match=words):
        check_plan_fits("step", plan, HERE, "11.4.0.106", REBUILD)


def test_how_much_memory_is_missing_and_which_flag_helps() -> None:
    check_memory_fits("step", 9 << 30, 1 << 30, HERE, REBUILD)
    words = (
        rf"step: its weights take {9 << 30} bytes, activations of its smallest profile {(1 << 30) + 5} more, .*: 5 are "
        "missing; .*--memory sequential.*--weight-streaming.*--profile"
    )
    with pytest.raises(OutOfDeviceMemory, match=words):
        check_memory_fits("step", 9 << 30, (1 << 30) + 5, HERE, REBUILD)
