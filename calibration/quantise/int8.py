"""Symmetric int8: one scale for each output channel of a weight, and one scale for a whole activation."""

from __future__ import annotations

import torch
from torch import Tensor

from qwen_image_engine.calibration.quantise.error_feedback import ErrorFeedback

LEVELS = 127
"""Number of codes on each side of zero. The code -128 of weights is not used, so that the range is symmetric."""


def quantise_rows(
    rows: Tensor, dtype: torch.dtype = torch.float32, feedback: ErrorFeedback | None = None
) -> tuple[Tensor, Tensor]:
    """Return codes (N, K) int8 and scales (N,) `dtype` of `rows` (N, K) float32, which are about codes * scales.

    Codes are computed with the stored scale: the nearest codes, or the codes from `feedback`. A row of zeros has
    scale 1, because a scale of 0 would divide 0 by 0.
    """
    scales = rows.abs().amax(dim=1) / LEVELS
    scales = torch.where(scales > 0, scales, 1.0).to(dtype)
    steps = scales.float()
    if feedback is not None:
        rows = feedback.rounded(rows, lambda values: (values / steps).round().clamp(-LEVELS, LEVELS) * steps)
    codes = (rows / steps[:, None]).round().clamp(-LEVELS, LEVELS)
    return codes.to(torch.int8), scales


def quantise(values: Tensor, scale: float) -> Tensor:
    """Return the codes (int8) that ONNX QuantizeLinear gives for `values`, which are about codes * scale.

    The range of an activation comes from calibration. Values beyond the range saturate at 127 and -128.
    """
    return (values / scale).round().clamp(-LEVELS - 1, LEVELS).to(torch.int8)
