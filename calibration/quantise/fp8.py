"""FP8 E4M3 (4 bits of exponent, 3 bits of mantissa), one scale a tensor. Source: https://arxiv.org/abs/2209.05433."""

from __future__ import annotations

import torch
from torch import Tensor

from qwen_image_engine.calibration.quantise import fp8
from qwen_image_engine.calibration.quantise.error_feedback import ErrorFeedback

LARGEST = 448.0
"""Largest finite code. Larger values saturate, because the conversion would make them NaN."""

MARGIN = 1.1
"""Headroom factor above the absmax of the calibration. A tenth costs a floating-point code almost nothing."""


def quantise_rows(rows: Tensor, scale: float, feedback: ErrorFeedback | None = None) -> Tensor:
    """Return the codes (N, K) of a weight's rows (N, K) float32: the nearest codes, or the codes from `feedback`."""
    if feedback is not None:
        rows = feedback.rounded(rows, lambda values: quantise(values, scale).float() * scale)
    return quantise(rows, scale)


def quantise(values: Tensor, scale: float) -> Tensor:
    """Return the nearest codes (float8_e4m3fn) of `values`, ties to even; `values` are about codes * scale."""
    return (values / scale).clamp_(-LARGEST, LARGEST).to(torch.float8_e4m3fn)


SOFTMAX = 1 / fp8.LARGEST
"""Scale (the value of code 1) of probabilities, which are at most 1."""
