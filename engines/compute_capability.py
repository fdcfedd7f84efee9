"""What 8-bit products in a TensorRT engine ask of a GPU."""

from collections.abc import Collection

FP8 = 8.9
"""Ada."""

INT8_AND_FP8 = 10.0
"""Blackwell: before it an engine has the one or the other."""


def least_compute_capability(precisions: Collection[str]) -> float | None:
    """That an engine with linears or attention in these precisions needs; None where any GPU will do."""
    if "fp8" not in precisions:
        return None
    return INT8_AND_FP8 if "int8" in precisions else FP8
