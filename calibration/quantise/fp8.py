"""FP8 E4M3 (4 bits of exponent, 3 of mantissa), one scale a tensor. Source: https://arxiv.org/abs/2209.05433."""

from __future__ import annotations

import torch
from torch import Tensor

from qwen_image_engine.calibration.quantise import fp8
from qwen_image_engine.calibration.quantise.error_feedback import ErrorFeedback

LARGEST = 448.0
"""The largest finite code; what lies beyond it saturates, and would be NaN otherwise."""

MARGIN = 1.1
"""Room above the largest magnitude that calibration saw: a tenth costs a floating-point code next to nothing."""


def quantise_rows(rows: Tensor, scale: float, feedback: ErrorFeedback | None = None) -> Tensor:
    """Codes (N, K) of a weight's rows (N, K) float32, the nearest or those of `feedback`."""
    if feedback is not None:
        rows = feedback.rounded(rows, lambda values: quantise(values, scale).float() * scale)
    return quantise(rows, scale)


def quantise(values: Tensor, scale: float) -> Tensor:
    """Codes (float8_e4m3fn) of `values`, which are about codes * scale, rounded to the nearest, ties to even."""
    return (values / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)


SOFTMAX = 1 / fp8.LARGEST
"""The value of code 1 of probabilities, which reach 1 and no more."""
