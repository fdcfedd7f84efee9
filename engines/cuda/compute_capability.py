"""What the number formats of a graph, and the kernels of a package, ask of a GPU."""

from collections.abc import Collection, Mapping

BF16 = 8.0
"""Ampere (CUDA programming guide, arithmetic of bfloat16 on tensor cores; no TensorRT takes bf16 before it)."""

FP8 = 8.9
"""Ada."""

INT8_AND_FP8 = 10.0
"""Blackwell: before it an engine has the one or the other."""

ONNXRUNTIME_KERNELS: Mapping[int, int] = {7: 5, 8: 0, 9: 0, 12: 0}
"""Least minor number by major, of onnxruntime-gpu 1.31 as it is published for CUDA 13: it holds machine code for 7.5,
8.0, 8.6, 8.9, 9.0 and 12.0, and no PTX, which a GPU of another major number would need."""


def runs_onnxruntime(compute_capability: str) -> bool:
    """Whether ONNX Runtime's kernels run on a GPU of this compute capability, "9.0"."""
    major, minor = map(int, compute_capability.split("."))
    return minor >= ONNXRUNTIME_KERNELS.get(major, minor + 1)


def least_compute_capability(precisions: Collection[str]) -> float | None:
    """That a graph with these precisions needs; None where any GPU will do.

    A graph with products in int8 is bf16 elsewhere.
    """
    if "fp8" in precisions:
        return INT8_AND_FP8 if "int8" in precisions else FP8
    return BF16 if {"bf16", "int8"} & set(precisions) else None
