"""A profile of a step on the device: time by kind of kernel."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks.gpu.work import synchronise

# By the names that cuBLAS, CUTLASS, cuDNN and flash attention give their kernels; on a CPU, torch's operators.
KINDS: Mapping[str, re.Pattern[str]] = {
    "attention": re.compile(r"flash|fmha|sdpa|scaled_dot_product|attention|unfused", re.IGNORECASE),
    "products": re.compile(r"gemm|gemv|splitK|nvjet|cutlass|xmma|cublas|addmm|\bmm\b|^triton_tem", re.IGNORECASE),
    "copies": re.compile(r"memcpy|memset|copy_|CatArray|::cat\b", re.IGNORECASE),
}
REST = "rest: norms, gates, rotations"
SHOWN = 15
NAME_LETTERS = 120

_GENERATED = re.compile(r"^triton_(?!tem)")
"""Pattern of kernels that inductor generates. Their names list all fused operators, attention's among them."""


def kind_of(kernel: str) -> str:
    """Return the kind of a kernel, by its name."""
    if _GENERATED.search(kernel):
        return REST
    return next((kind for kind, pattern in KINDS.items() if pattern.search(kernel)), REST)


def profile_step(run: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """Return the milliseconds of one run by kind of kernel, its slowest kernels, and its attention kernels.

    The profiler sees every kernel of the process, an engine's too. The names show whether its attention is flash
    attention (`flash_fwd_kernel`; ONNX Runtime's others are `attention_kernel_batched_impl` and
    `UnfusedSoftmaxKernel`).
    """
    run()
    synchronise(device)
    cuda = device.type == "cuda"
    activity = torch.profiler.ProfilerActivity.CUDA if cuda else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as profiler:
        run()
        synchronise(device)
    kernels = [
        {"name": event.key, "ms": microseconds / 1000, "count": event.count}
        for event in profiler.key_averages()
        if (microseconds := event.self_device_time_total if cuda else event.self_cpu_time_total)
    ]
    kinds: dict[str, float] = {}
    for kernel in kernels:
        kind = kind_of(kernel["name"])
        kinds[kind] = kinds.get(kind, 0.0) + kernel["ms"]
    attention = sorted(kernel["name"] for kernel in kernels if kind_of(kernel["name"]) == "attention")
    slowest = sorted(kernels, key=lambda kernel: -kernel["ms"])[:SHOWN]
    return {
        "total_ms": sum(kinds.values()),
        "kinds_ms": kinds,
        "flash": bool(attention) and all("flash" in name for name in attention),
        "attention_kernels": [name[:NAME_LETTERS] for name in attention],
        "kernels": [kernel | {"name": kernel["name"][:NAME_LETTERS]} for kernel in slowest],
    }
