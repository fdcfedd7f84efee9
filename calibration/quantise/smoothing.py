"""SmoothQuant: scales that move magnitude from the channels of an activation into the weights that read it.

    s_j = max|x_j|^alpha / max|W_j|^(1 - alpha)        x W^T = (x / s) (W s)^T

Source: https://arxiv.org/abs/2211.10438, equation 4. Scales are rounded to powers of two. The rounded scale is wrong by
at most a factor of sqrt(2) and changes no bit of a mantissa, so in floating point the network is exactly the same.
Alpha is chosen for each input by the error that a model of rounding predicts, so no activations have to be stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qwen_image_engine.calibration.observe.statistics import InputStatistics
from qwen_image_engine.calibration.quantise.int8 import LEVELS

ALPHAS = (0.8, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.85, 0.9, 0.95, 1.0)
"""Candidates for alpha. The first candidate wins if no other is better."""

Rows = Callable[[], Iterator[Tensor]]
"""A function that reads a weight (N, K) as blocks of rows (n, K), from the start at every call."""


@dataclass(frozen=True, eq=False)
class Smoothing:
    """The smoothing of one input.

    Attributes:
        alpha: the exponent from which the scales are computed.
        scales: (K,): powers of two by which the channels are divided.
    """

    alpha: float
    scales: Tensor


def best_smoothing(inputs: Sequence[InputStatistics], weights: Sequence[Rows]) -> Smoothing:
    """Return the smoothing with the smallest predicted error, summed over components and weights.

    Args:
        inputs: statistics of the input in each component that has it. Each component has a scale of its own.
        weights: readers of the weights (N, K) of the linears that read the input. Each weight is read twice.

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
    """Return powers of two (K,) float32 near SmoothQuant's scales; 1 for a channel that either side never uses."""
    exponents = alpha * torch.log2(absmax.double()) - (1 - alpha) * torch.log2(weight_absmax.double())
    exponents = torch.where(torch.isfinite(exponents), exponents, 0.0)
    return torch.exp2(exponents.round()).float()


@dataclass(frozen=True, eq=False)
class _Columns:
    """The statistics of a weight's columns: absmax (K,) and sum of squares (K,) float64."""

    absmax: Tensor
    square: Tensor


def _columns(blocks: Iterable[Tensor], channels: int) -> _Columns:
    absmax, square = torch.zeros(channels), torch.zeros(channels, dtype=torch.float64)
    for rows in blocks:
        torch.maximum(absmax, rows.abs().amax(dim=0), out=absmax)
        square += rows.double().square().sum(dim=0)
    return _Columns(absmax, square)


def _row_squares(blocks: Iterable[Tensor], scales: Tensor) -> Tensor:
    """Return the sum (A,) over a weight's rows of the square of the row's absmax, under each of `scales` (A, K)."""
    total = torch.zeros(len(scales), dtype=torch.float64)
    for rows in blocks:
        magnitudes = rows.abs()
        total += torch.stack([(magnitudes * scale).amax(dim=1).double().square().sum() for scale in scales])
    return total


def _predicted_error(item: InputStatistics, weight_square: Tensor, row_squares: Tensor, scales: Tensor) -> Tensor:
    """Return the mean square error (A,) of a product's row under each of `scales` (A, K), both operands in 8 bits.

    Rounding to a grid of step d is noise of variance d^2 / 12. If the step is larger than the value, the noise is at
    most the value itself. The noise of the two operands adds up.
    """
    squares = scales.double().square()
    smoothed = item.channel_mean_square.double() / squares
    steps = (item.channel_absmax / scales).amax(dim=1, keepdim=True).double() / LEVELS
    rounding = torch.minimum(steps.square() / 12, smoothed)
    of_activations = (rounding * weight_square * squares).sum(dim=1)
    of_weights = row_squares / LEVELS**2 / 12 * smoothed.sum(dim=1)
    return of_activations + of_weights


def equalising_scales(rows: Tensor, columns: Tensor) -> Tensor:
    """Return powers of two (C,) float32 near sqrt(columns / rows).

    The error of a quantised product grows with |x s| |W / s| for activations x and the second weight W. By the
    inequality of Cauchy and Schwarz, the minimum is at s_i^2 = |W_i| / |x_i|, and |x_i| is proportional to the norm of
    the first weight's row i. A power of two is wrong by at most a factor of sqrt(2) and changes no bit of a mantissa,
    so the network is exactly the same.

    Args:
        rows: (C,) norms of the first weight's rows.
        columns: (C,) norms of the second weight's columns.

    """
    exponents = (torch.log2(columns.double()) - torch.log2(rows.double())) / 2
    # A channel that either side never uses has nothing to move.
    exponents = torch.where(torch.isfinite(exponents), exponents, 0.0)
    return torch.exp2(exponents.round()).float()


def shared_by_heads(columns: Tensor, groups: int, channels: int) -> Tensor:
    """Return the norms (C,) of the value channels of `groups` heads from the norms of the columns that they feed.

    Several query heads share a value head. Heads of a group are adjacent, as for enable_gqa of
    scaled_dot_product_attention.
    """
    return columns.reshape(groups, -1, channels // groups).square().sum(dim=1).sqrt().flatten()


def for_heads(scales: Tensor, groups: int, columns: int) -> Tensor:
    """Repeat the scales (C,) of the value channels of `groups` heads for each of the `columns` that they feed."""
    return scales.reshape(groups, 1, -1).repeat(1, columns // scales.numel(), 1).flatten()
