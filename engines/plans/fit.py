"""Checks that a plan may be loaded here: the same TensorRT, the same kind of GPU, no older driver, and enough memory.

A plan is machine code for one TensorRT and one kind of GPU. TensorRT refuses some mismatches itself, not all, and its
error never names the command that builds another plan.
"""

import warnings

from qwen_image_engine.engines.core.errors import OutOfDeviceMemory, QwenImageError
from qwen_image_engine.engines.cuda.driver import DeviceInfo, version_text
from qwen_image_engine.engines.plans.entry import PlanEntry


def check_plan_fits(component: str, plan: PlanEntry, device: DeviceInfo, tensorrt: str, rebuild: str) -> None:
    """Compare TensorRT, GPU and driver of the plan's build with the ones here.

    Another model of GPU of the same compute capability gives a warning: TensorRT takes the plan, whose kernels were
    timed elsewhere, and promises nothing. `rebuild` is the command that builds another plan.

    Raises:
        QwenImageError: TensorRT or the compute capability here is another, or the driver here is older.
    """
    differences = []
    if plan.tensorrt != tensorrt:
        differences.append(f"by TensorRT {plan.tensorrt}, this is {tensorrt}")
    if plan.compute_capability != device.compute_capability:
        differences.append(
            f"on {plan.gpu} (compute capability {plan.compute_capability}), this is {device.name} "
            f"({device.compute_capability})"
        )
    if plan.driver > device.driver:
        differences.append(
            f"with a driver of CUDA {version_text(plan.driver)}, this one serves {version_text(device.driver)}"
        )
    if differences:
        raise QwenImageError(
            f"{component}: its engine was built {', and '.join(differences)}; build it again here with: {rebuild}"
        )
    if plan.gpu != device.name:
        warnings.warn(
            f"{component}: its engine was built on {plan.gpu}, this is {device.name}: it may be slow here, or fail; "
            f"build it again with: {rebuild}",
            RuntimeWarning,
            stacklevel=2,
        )


def check_memory_fits(component: str, weights: int, scratch: int, device: DeviceInfo, rebuild: str) -> None:
    """Raise if the device has no room for a plan, before its weights are read.

    `weights` is the bytes of the weights on the device. `scratch` is the bytes that the activations of the smallest
    profile take beside the scratch memory that engines share already. Inputs and outputs depend on the request and are
    not counted. `rebuild` is the command that builds another plan.

    Raises:
        OutOfDeviceMemory: weights and activations are larger than the free memory of the device.
    """
    missing = weights + scratch - device.free_bytes
    if missing > 0:
        raise OutOfDeviceMemory(
            f"{component}: its weights take {weights} bytes, activations of its smallest profile {scratch} more, and "
            f"{device.free_bytes} of the {device.total_bytes} bytes of {device.name} are free: {missing} are missing; "
            f"run with --memory sequential, keep weights on the host with: {rebuild} --weight-streaming, build for "
            "less (--profile, --references, --prompt-tokens, --batch), or export with --precision fp8 or int8"
        )
