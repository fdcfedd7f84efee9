"""The choice of the plan for a device, and checks that it may be loaded there: builder, GPU, driver, memory.

A plan is code for one version of its builder and for certain compute capabilities. The builder refuses some mismatches
itself, not all, and its error never names the command that builds another plan.
"""

import warnings
from collections.abc import Sequence

from qwen_image_engine.engines.core.errors import OutOfDeviceMemory, QwenImageError
from qwen_image_engine.engines.cuda.driver import DeviceInfo, version_text
from qwen_image_engine.engines.plans.entry import PlanEntry


def choose_plan(
    component: str, plans: Sequence[PlanEntry], builder: str, device: DeviceInfo, version: str, rebuild: str
) -> PlanEntry:
    """Return the plan of `builder` for a device: of those that run on it, the one for the fewest compute capabilities.

    A plan of this `version` of the builder comes before others. If none runs on the device, a plan of the builder is
    returned, which `check_plan_fits` refuses. `rebuild` is the command that builds a plan.

    Raises:
        QwenImageError: there is no plan of this builder.
    """
    found = [plan for plan in plans if plan.builder == builder]
    if not found:
        others = dict.fromkeys(plan.builder for plan in plans)
        only = f", only one for --engine {' and one for '.join(others)}" if others else ""
        raise QwenImageError(f"{component}: the bundle holds no {builder} engine of it{only}; make one with: {rebuild}")
    fitting = [plan for plan in found if device.compute_capability in plan.compute_capabilities]
    current = [plan for plan in fitting if plan.version == version]
    return min(current or fitting or found, key=lambda plan: len(plan.compute_capabilities))


def check_plan_fits(component: str, plan: PlanEntry, device: DeviceInfo, version: str, rebuild: str) -> None:
    """Compare builder, GPU and driver of the plan's build with the ones here.

    Another model of GPU of the same compute capability gives a warning for a plan of TensorRT: it is taken, but its
    kernels were timed elsewhere. `rebuild` is the command that builds another plan.

    Raises:
        QwenImageError: the version of the builder or the compute capability here is another, or the driver here is
            older.
    """
    differences = []
    if plan.version != version:
        differences.append(f"by {plan.builder} {plan.version}, this is {version}")
    if device.compute_capability not in plan.compute_capabilities:
        built_on = "for" if plan.gpu is None else f"on {plan.gpu} for"
        differences.append(
            f"{built_on} compute capability {', '.join(plan.compute_capabilities)}, this is {device.name} "
            f"({device.compute_capability})"
        )
    if plan.driver is not None and plan.driver > device.driver:
        differences.append(
            f"with a driver of CUDA {version_text(plan.driver)}, this one serves {version_text(device.driver)}"
        )
    if differences:
        raise QwenImageError(
            f"{component}: its engine was built {', and '.join(differences)}; build it again here with: {rebuild}"
        )
    if plan.gpu not in (None, device.name):
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


def check_shared_weights_fit(
    component: str, weights: int, held: int, plan: int, scratch: int, device: DeviceInfo
) -> None:
    """Raise if the device has no room for the weights that a plan takes as inputs, before any is uploaded.

    Args:
        component: name of the component.
        weights: bytes of the weights.
        held: bytes of them that are on the device already, for other components.
        plan: bytes of the plan.
        scratch: as in `check_memory_fits`.
        device: properties of the device, with its free memory now.

    Raises:
        OutOfDeviceMemory: the missing weights, the plan and the activations are larger than the free memory.
    """
    missing = weights - held + plan + scratch - device.free_bytes
    if missing > 0:
        raise OutOfDeviceMemory(
            f"{component}: its weights take {weights} bytes, of which {held} are on the GPU for other components, its "
            f"plan {plan} and activations of its smallest profile {scratch} more, and {device.free_bytes} of the "
            f"{device.total_bytes} bytes of {device.name} are free: {missing} are missing; run with --memory "
            "sequential, build for less (--profile, --references, --prompt-tokens, --batch), or export with "
            "--precision fp8 or int8"
        )
