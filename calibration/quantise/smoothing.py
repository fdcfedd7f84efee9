"""SmoothQuant: magnitude moved from the channels of an activation into the weights that read it.

    s_j = max|x_j|^alpha / max|W_j|^(1 - alpha)        x W^T = (x / s) (W s)^T

Source: https://arxiv.org/abs/2211.10438, equation 4. Scales are rounded to powers of two, which misses by at most
sqrt(2) and moves no bit of a mantissa: in floating point the network is exactly the same. Alpha is chosen for each
input by the error that a model of rounding predicts, so no activations have to be kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qwen_image_engine.calibration.observe.statistics import InputStatistics
from qwen_image_engine.calibration.quantise.int8 import LEVELS

ALPHAS = (0.8, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.85, 0.9, 0.95, 1.0)
"""What is tried; the first wins where others are no better."""

Rows = Callable[[], Iterator[Tensor]]
"""Reads a weight (N, K) as blocks of rows (n, K), from the start at every call."""


@dataclass(frozen=True, eq=False)
class Smoothing:
    """Of one input: powers of two `scales` (K,) that channels are divided by, and the alpha that they come from."""

    alpha: float
    scales: Tensor


def best_smoothing(inputs: Sequence[InputStatistics], weights: Sequence[Rows]) -> Smoothing:
    """The smoothing whose predicted error is least, summed over where the input was seen and over what reads it.

    Args:
        inputs: statistics of the input in each component that has it; each will have a scale of its own.
        weights: of the linears that read it, each (N, K), read twice.

    """
    absmax = torch.stack([item.channel_absmax for item in inputs]).amax(dim=0)
    columns = [_columns(weight(), len(absmax)) for weight in weights]
    weight_absmax = torch.stack([column.absmax for column in columns]).amax(dim=0)
    scales = torch.stack([smoothing_scales(absmax, weight_absmax, alpha) for alpha in ALPHAS])
    errors = torch.zeros(len(ALPHAS), dtype=torch.float64)
    for weight, column in zip(weights, columns, strict=True):
        rows = _row_squares(weight(), scales)
        for item in inputs:
            signal = (item.channel_mean_square.double() * column.square).sum()
            if signal > 0:
                errors += _predicted_error(item, column.square, rows, scales) / signal
    best = int(errors.argmin())
    return Smoothing(ALPHAS[best], scales[best])


def smoothing_scales(absmax: Tensor, weight_absmax: Tensor, alpha: float) -> Tensor:
    """Powers of two (K,) float32 near SmoothQuant's scales; 1 for a channel that either side never uses."""
    exponents = alpha * torch.log2(absmax.double()) - (1 - alpha) * torch.log2(weight_absmax.double())
    exponents = torch.where(torch.isfinite(exponents), exponents, 0.0)
    return torch.exp2(exponents.round()).float()


@dataclass(frozen=True, eq=False)
class _Columns:
    """Of a weight's columns: largest magnitude (K,) and sum of squares (K,) float64."""

    absmax: Tensor
    square: Tensor


def _columns(blocks: Iterable[Tensor], channels: int) -> _Columns:
    absmax, square = torch.zeros(channels), torch.zeros(channels, dtype=torch.float64)
    for rows in blocks:
        torch.maximum(absmax, rows.abs().amax(dim=0), out=absmax)
        square += rows.double().square().sum(dim=0)
    return _Columns(absmax, square)


def _row_squares(blocks: Iterable[Tensor], scales: Tensor) -> Tensor:
    """Sum over the rows of a weight of the square of each one's largest magnitude, under each of `scales` (A, K)."""
    total = torch.zeros(len(scales), dtype=torch.float64)
    for rows in blocks:
        magnitudes = rows.abs()
        total += torch.stack([(magnitudes * scale).amax(dim=1).double().square().sum() for scale in scales])
    return total


def _predicted_error(item: InputStatistics, weight_square: Tensor, row_squares: Tensor, scales: Tensor) -> Tensor:
    """Mean square error (A,) of a product's row under each of `scales` (A, K), both operands rounded to 8 bits.

    Rounding to a grid of step d is noise of variance d^2 / 12, and no more than the value itself where the step is
    larger; noise of the two operands adds up.
    """
    squares = scales.double().square()
    smoothed = item.channel_mean_square.double() / squares
    steps = (item.channel_absmax / scales).amax(dim=1, keepdim=True).double() / LEVELS
    rounding = torch.minimum(steps.square() / 12, smoothed)
    of_activations = (rounding * weight_square * squares).sum(dim=1)
    of_weights = row_squares / LEVELS**2 / 12 * smoothed.sum(dim=1)
    return of_activations + of_weights


def equalising_scales(rows: Tensor, columns: Tensor) -> Tensor:
    """Powers of two (C,) float32 near sqrt(columns / rows).

    The error of a quantised product grows with |x s| |W / s|, x being the activations and W the second weight; by
    Cauchy and Schwarz that is least where s_i^2 = |W_i| / |x_i|, and |x_i| goes with the norm of the first weight's
    row i. A power of two misses by at most sqrt(2) and moves no bit of a mantissa: the network is exactly the same.

    Args:
        rows: (C,) norms of the first weight's rows.
        columns: (C,) norms of the second weight's columns.

    """
    exponents = (torch.log2(columns.double()) - torch.log2(rows.double())) / 2
    # A channel that either side never uses has nothing to move.
    exponents = torch.where(torch.isfinite(exponents), exponents, 0.0)
    return torch.exp2(exponents.round()).float()


def shared_by_heads(columns: Tensor, groups: int, channels: int) -> Tensor:
    """Norms (C,) of value channels, `groups` heads, from those of the columns they feed, of which heads share them.

    Heads of a group stand side by side, as in scaled_dot_product_attention's enable_gqa.
    """
    return columns.reshape(groups, -1, channels // groups).square().sum(dim=1).sqrt().flatten()


def for_heads(scales: Tensor, groups: int, columns: int) -> Tensor:
    """Scales (C,) of value channels, `groups` heads, for each of the `columns` that they feed."""
    return scales.reshape(groups, 1, -1).repeat(1, columns // scales.numel(), 1).flatten()
