from dataclasses import replace

import pytest

from qwen_image_engine.engines.core.errors import OutOfDeviceMemory, QwenImageError
from qwen_image_engine.engines.cuda.driver import DeviceInfo
from qwen_image_engine.engines.plans.entry import PlanEntry
from qwen_image_engine.engines.plans.fit import (
    check_memory_fits,
    check_plan_fits,
    check_shared_weights_fit,
    choose_plan,
)

HERE = DeviceInfo("NVIDIA H100", "9.0", 13010, total_bytes=80 << 30, free_bytes=10 << 30)
PLAN = PlanEntry("step.plan", "aa", "tensorrt", "11.4.0.106", ("9.0",), "NVIDIA H100", 13000, ())
FOR_RTX = PlanEntry("rtx.plan", "bb", "tensorrt-rtx", "1.7.1.116", ("8.6", "8.9"), None, None, ())
AT_HOME = DeviceInfo("GeForce RTX 4090", "8.9", 13000, total_bytes=24 << 30, free_bytes=23 << 30)
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


def test_a_plan_of_tensorrt_for_rtx_has_no_gpu_or_driver_of_its_own() -> None:
    check_plan_fits("step", FOR_RTX, AT_HOME, "1.7.1.116", REBUILD)
    words = r"built by tensorrt-rtx 1\.7\.1\.116, this is 1\.8\.0\.1, and for compute capability 8\.6, 8\.9, this is"
    newer = replace(AT_HOME, name="GeForce RTX 5090", compute_capability="12.0")
    with pytest.raises(QwenImageError, match=rf"{words} GeForce RTX 5090 \(12\.0\); build it again here .*{REBUILD}$"):
        check_plan_fits("step", FOR_RTX, newer, "1.8.0.1", REBUILD)


def test_the_plan_for_the_fewest_gpus_is_chosen_among_those_that_run() -> None:
    for_one = replace(FOR_RTX, file="one.plan", compute_capabilities=("8.9",))
    for_others = replace(FOR_RTX, file="others.plan", compute_capabilities=("12.0",))
    plans = (PLAN, for_others, FOR_RTX, for_one)
    assert choose_plan("step", plans, "tensorrt-rtx", AT_HOME, "1.7.1.116", REBUILD) is for_one
    assert choose_plan("step", plans[:3], "tensorrt-rtx", AT_HOME, "1.7.1.116", REBUILD) is FOR_RTX
    assert choose_plan("step", plans, "tensorrt", HERE, "1.7.1.116", REBUILD) is PLAN
    assert (
        choose_plan("step", plans[:2], "tensorrt-rtx", AT_HOME, "1.7.1.116", REBUILD) is for_others
    )  # which is refused in words


@pytest.mark.parametrize(
    ("plans", "words"),
    [
        ((), r"no tensorrt engine of it; make one with: qwen-image build BUNDLE$"),
        ((FOR_RTX, FOR_RTX), r"no tensorrt engine of it, only one for --engine tensorrt-rtx; make one with"),
    ],
)
def test_a_builder_without_a_plan_is_told(plans: tuple[PlanEntry, ...], words: str) -> None:
    with pytest.raises(QwenImageError, match=words):
        choose_plan("step", plans, "tensorrt", HERE, "1.7.1.116", REBUILD)


def test_how_much_memory_is_missing_and_which_flag_helps() -> None:
    check_memory_fits("step", 9 << 30, 1 << 30, HERE, REBUILD)
    words = (
        rf"step: its weights take {9 << 30} bytes, activations of its smallest profile {(1 << 30) + 5} more, .*: 5 are "
        "missing; .*--memory sequential.*--weight-streaming.*--profile"
    )
    with pytest.raises(OutOfDeviceMemory, match=words):
        check_memory_fits("step", 9 << 30, (1 << 30) + 5, HERE, REBUILD)


def test_a_plan_of_this_version_comes_before_a_narrower_one_of_another() -> None:
    older = replace(FOR_RTX, file="older.plan", version="1.7.0.1", compute_capabilities=("8.9",))
    assert choose_plan("step", (older, FOR_RTX), "tensorrt-rtx", AT_HOME, "1.7.1.116", REBUILD) == FOR_RTX


def test_weights_that_are_on_the_device_already_count_once() -> None:
    check_shared_weights_fit("step", 14 << 30, 5 << 30, 1 << 29, 1 << 29, HERE)
    with pytest.raises(
        OutOfDeviceMemory,
        match=r"^step: its weights take 15032385536 bytes, of which 5368709120 are on the GPU for other components, "
        r"its plan 536870912 and .* profile 536870917 more, and .* free: 5 are missing; run with --memory sequential, "
        r"build for less \(.*\), or export with --precision fp8 or int8$",
    ):
        check_shared_weights_fit("step", 14 << 30, 5 << 30, 1 << 29, (1 << 29) + 5, HERE)
