"""The peak host memory of a build with TensorRT for RTX, and its check before the build."""

from __future__ import annotations

from qwen_image_engine.engines.core.components import COMPONENTS
from qwen_image_engine.engines.core.errors import QwenImageError

# Fitted to benchmarks/results/build-memory.json: the build's process by its kernel's count, pages of mapped files among
# them (weights, once). The process begins with Python and the compiler's libraries; graph and code of profiles add
# little to that.
_PROCESS_BYTES = 400_000_000
_TIMES_WEIGHTS = 2.45

# Fitted to benchmarks/results/build-memory-bound.json and full-size-build.json. Bound weights are never read; each
# stands for a product, whose nodes and code are all that is there.
_BOUND_PROCESS_BYTES = 300_000_000
_OF_A_BOUND_WEIGHT = 2_800_000


def build_memory_bytes(weight_bytes: int, bound: int = 0) -> int:
    """Return the estimate of the peak memory of the process that builds a plan [bytes].

    Sizes of profiles and the number of compute capabilities hardly matter: the compiler runs nothing, so it allocates
    no activations.

    Args:
        weight_bytes: bytes of the weights inside the plan.
        bound: number of the weights that are inputs of the plan.
    """
    process = _BOUND_PROCESS_BYTES + _OF_A_BOUND_WEIGHT * bound if bound else _PROCESS_BYTES
    return process + int(_TIMES_WEIGHTS * weight_bytes)


def check_host_memory(
    component: str, weight_bytes: int, free_bytes: int | None, *, bound: int = 0, advise_bound: bool = False
) -> None:
    """Raise if a component's build needs more memory than the machine has free.

    Args:
        component: name of the component.
        weight_bytes: bytes of the weights inside its plan.
        free_bytes: most bytes that the build's process can take; None if the system does not report them, and then
            nothing is checked.
        bound: number of the weights that are inputs of its plan.
        advise_bound: whether weights are inside that could be bound.

    Raises:
        QwenImageError: the build is estimated to need more than `free_bytes`.
    """
    needed = build_memory_bytes(weight_bytes, bound)
    if free_bytes is not None and needed > free_bytes:
        instead = "build with --weights bound, which reads no weights of products, " if advise_bound else ""
        is_quantised = COMPONENTS[component].network == "transformer"
        smaller = "export with --precision fp8 or int8, " if is_quantised else ""
        raise QwenImageError(
            f"{component}: its build takes about {needed} bytes of this machine's memory for {weight_bytes} bytes of "
            f"weights, and {free_bytes} are free, swap included; {instead}free some, {smaller}build the smaller "
            "components alone with --only, or build on another machine: a bundle can be copied"
        )
