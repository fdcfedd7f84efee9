"""Compute capabilities that the number formats of a graph and the kernels of a package need."""

from collections.abc import Collection, Mapping

BF16 = 8.0
"""Compute capability of Ampere (CUDA programming guide, arithmetic of bfloat16 on tensor cores). TensorRT does not take
bf16 on an older GPU."""

FP8 = 8.9
"""Compute capability of Ada."""

INT8_AND_FP8 = 10.0
"""Compute capability of Blackwell. On an older GPU a plan has either INT8 or FP8."""

ONNXRUNTIME_KERNELS: Mapping[int, int] = {7: 5, 8: 0, 9: 0, 12: 0}
"""Smallest minor number by major number of the compute capability, for onnxruntime-gpu 1.31 as published for CUDA 13.

The package holds machine code for 7.5, 8.0, 8.6, 8.9, 9.0 and 12.0. It holds no PTX, which a GPU of another major
number would need."""


TENSORRT_RTX = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities that TensorRT for RTX 1.7 builds for: `ComputeCapability` of its bindings."""


def runs_onnxruntime(compute_capability: str) -> bool:
    """Return whether ONNX Runtime's kernels run on a GPU of this compute capability, "9.0"."""
    major, minor = map(int, compute_capability.split("."))
    return minor >= ONNXRUNTIME_KERNELS.get(major, minor + 1)


def least_compute_capability(precisions: Collection[str]) -> float | None:
    """Return the minimum compute capability for a graph with these precisions, or None if any GPU works.

    A graph with int8 products is bf16 elsewhere.
    """
    if "fp8" in precisions:
        return INT8_AND_FP8 if "int8" in precisions else FP8
    return BF16 if {"bf16", "int8"} & set(precisions) else None
