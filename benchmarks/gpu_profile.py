"""Where the time of a step goes on the device, by kind of kernel."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from gpu_work import synchronise

# By the names that cuBLAS, CUTLASS, cuDNN and flash attention give their kernels; on a CPU, torch's operators.
KINDS: Mapping[str, re.Pattern[str]] = {
    "attention": re.compile(r"flash|fmha|sdpa|scaled_dot_product|attention|unfused", re.IGNORECASE),
    "products": re.compile(r"gemm|nvjet|cutlass|xmma|cublas|addmm|\bmm\b|triton_.*_mm", re.IGNORECASE),
    "copies": re.compile(r"memcpy|memset|copy_|CatArray|::cat\b", re.IGNORECASE),
}
REST = "rest: norms, gates, rotations"
SHOWN = 15


def profile_step(run: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """Milliseconds of one run by kind of kernel, the kernels that take most, and those of attention.

    The profiler sees every kernel of the process, an engine's too: whether its attention is flash attention shows here
    (`flash_fwd_kernel`; ONNX Runtime's others are `attention_kernel_batched_impl` and `UnfusedSoftmaxKernel`).
    """
    run()
    synchronise(device)
    cuda = device.type == "cuda"
    activity = torch.profiler.ProfilerActivity.CUDA if cuda else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as profiler:
        run()
        synchronise(device)
    kernels = {}
    for event in profiler.key_averages():
        taken = event.self_device_time_total if cuda else event.self_cpu_time_total
        if taken:
            kernels[event.key] = taken / 1000
    kinds: dict[str, float] = {}
    for name, milliseconds in kernels.items():
        kind = next((kind for kind, pattern in KINDS.items() if pattern.search(name)), REST)
        kinds[kind] = kinds.get(kind, 0.0) + milliseconds
    slowest = sorted(kernels.items(), key=lambda item: -item[1])[:SHOWN]
    attention = sorted(name[:120] for name in kernels if KINDS["attention"].search(name))
    return {
        "flash": bool(attention) and all("flash" in name for name in attention),
        "kinds_ms": kinds,
        "kernels_ms": {name[:120]: milliseconds for name, milliseconds in slowest},
        "attention_kernels": attention,
    }
