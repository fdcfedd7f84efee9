"""What the number formats of a graph ask of a GPU."""

from collections.abc import Collection

BF16 = 8.0
"""Ampere (CUDA programming guide, arithmetic of bfloat16 on tensor cores; no TensorRT takes bf16 before it)."""

FP8 = 8.9
"""Ada."""

INT8_AND_FP8 = 10.0
"""Blackwell: before it an engine has the one or the other."""


def least_compute_capability(precisions: Collection[str]) -> float | None:
    """That a graph with these precisions needs; None where any GPU will do.

    A graph with products in int8 is bf16 elsewhere.
    """
    if "fp8" in precisions:
        return INT8_AND_FP8 if "int8" in precisions else FP8
    return BF16 if {"bf16", "int8"} & set(precisions) else None
