"""Symmetric int8: one scale for each output channel of a weight, one for all of an activation."""

from __future__ import annotations

import torch
from torch import Tensor

from qwen_image_engine.calibration.quantise.error_feedback import ErrorFeedback

LEVELS = 127
"""Codes on each side of zero; -128 is not used, so that the range is symmetric."""


def quantise_rows(
    rows: Tensor, dtype: torch.dtype = torch.float32, feedback: ErrorFeedback | None = None
) -> tuple[Tensor, Tensor]:
    """Codes (N, K) int8 and scales (N,) `dtype` of `rows` (N, K) float32, which are about codes * scales.

    Codes are those of the scale as it is stored, the nearest or those of `feedback`. A row of zeros has scale 1: a
    scale of 0 would divide 0 by 0.
    """
    scales = rows.abs().amax(dim=1) / LEVELS
    scales = torch.where(scales > 0, scales, 1.0).to(dtype)
    steps = scales.float()
    if feedback is not None:
        rows = feedback.rounded(rows, lambda values: (values / steps).round().clamp(-LEVELS, LEVELS) * steps)
    codes = (rows / steps[:, None]).round().clamp(-LEVELS, LEVELS)
    return codes.to(torch.int8), scales


def quantise(values: Tensor, scale: float) -> Tensor:
    """Codes (int8) of `values`, which are about codes * scale, as QuantizeLinear gives them.

    The range of an activation is from calibration: what lies beyond it saturates, at -128 on its side of zero.
    """
    return (values / scale).round().clamp(-LEVELS - 1, LEVELS).to(torch.int8)
